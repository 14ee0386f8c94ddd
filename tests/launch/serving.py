"""`diffdoctor serve`, with the toy among its methods: `python -m tests.launch.serving WORDS`."""

import core.config
from launch.commands import serve
from launch.methods import METHODS, Method
from tests.launch.toy import METHOD

if __name__ == "__main__":
    METHODS["toy"] = Method(**METHOD)
    core.config.run_program(serve.main, serve.Config, prog="diffdoctor serve")
