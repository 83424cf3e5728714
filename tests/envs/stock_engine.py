"""Plays games on ALFWorld's stock engine, nothing remembered; run as a process of its own.

Reads {"games": [{"game": ..., "commands": [...]}]} and writes, for each game, the list of
[text, admissible commands, score, done] from the intro on.
"""

import contextlib
import json
import sys

import textworld
from alfworld.agents.environment.alfred_tw_env import AlfredDemangler
from textworld.envs.pddl.pddl import PddlEnv


def play(game, commands):
    wanted = textworld.EnvInfos(admissible_commands=True, won=True)
    env = AlfredDemangler(PddlEnv(wanted))
    env.load(game)
    state = env.reset()
    trace = [[state.feedback, state["admissible_commands"], 0, False]]
    for command in commands:
        state, score, done = env.step(command)
        trace.append([state.feedback, state["admissible_commands"], score, done])
    return trace


if __name__ == "__main__":
    request = json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        traces = [play(item["game"], item["commands"]) for item in request["games"]]
    json.dump(traces, sys.stdout)
