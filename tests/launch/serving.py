"""`diffdoctor serve`, with the toy among its methods: `python -m tests.launch.serving WORDS`.

Its queue is looked at four times as often: a job of the toy lasts as long as a look.
"""

import core.config
from launch.commands import serve
from launch.methods import METHODS, Method
from launch.service import dispatch
from tests.launch.toy import METHOD

if __name__ == "__main__":
    dispatch.POLL = 0.5
    METHODS["toy"] = Method(**METHOD)
    core.config.run_program(serve.main, serve.Config, prog="diffdoctor serve")
