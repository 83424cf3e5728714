"""Methods: each a rule, a budget and a credit, as a change of a recipe."""
