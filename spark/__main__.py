"""`python -m spark`, which is also what torchrun starts."""

import sys

from spark.cli import main

sys.exit(main())
