"""Run the OpenAI-compatible server. Without MODEL: the demo pair, on whatever device there is."""

import argparse
import json
import logging
import os
import socket
import sys
from typing import TYPE_CHECKING

from adaserve.cli.checks import check_engine
from adaserve.cli.options import DEFAULTS, add_engine_options, engine_config
from adaserve.errors import InvalidConfig

if TYPE_CHECKING:
    from adaserve.server.messages import Ready
    from adaserve.server.slo import SLOBook

EXAMPLES = """examples:
  adaserve serve
  adaserve serve ./SmolLM2-360M-Instruct --draft ngram --port 9000
  adaserve serve demo --slo-class coding=tpot:1.2x,ttft:500 --slo-class chat=tpot:50 --default-slo chat
  adaserve serve demo --slo-class coding=tpot:30 --service-tier priority=coding --api-key "$KEY"

then:
  curl localhost:8000/v1/chat/completions -H 'content-type: application/json' \\
    -d '{"model": "demo", "messages": [{"role": "user", "content": "Hello"}], "slo": {"tpot_ms": 50}}'
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the options of `adaserve serve`."""
    add_engine_options(parser)
    group = parser.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="where to listen (default: %(default)s, this machine only)")
    group.add_argument("--port", type=int, default=8000, help="port to listen on; 0 takes a free one (default: %(default)s)")
    group.add_argument(
        "--api-key", action="append", default=[], metavar="KEY", help="key that calls must show; repeatable (or ADASERVE_API_KEY)"
    )
    group.add_argument(
        "--served-model-name", nargs="+", default=[], metavar="NAME", help="names that calls may use (default: MODEL)"
    )
    group.add_argument(
        "--max-queue",
        type=int,
        default=DEFAULTS.max_queue,
        metavar="N",
        help="requests that may wait before more are refused with 429 (default: %(default)s)",
    )
    group.add_argument(
        "--grace", type=float, default=30.0, metavar="SECONDS", help="time to finish on SIGTERM (default: %(default)s)"
    )
    group.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="warning")
    slos = parser.add_argument_group("service levels")
    slos.add_argument(
        "--slo-class",
        action="append",
        default=[],
        metavar="NAME=tpot:50,ttft:500",
        help="a class of requests and its targets in ms, or tpot:1.2x times the baseline; repeatable",
    )
    slos.add_argument("--default-slo", metavar="NAME", help="the class of requests that name none (default: no targets)")
    slos.add_argument(
        "--service-tier", action="append", default=[], metavar="TIER=CLASS", help="what OpenAI's service_tier means; repeatable"
    )


def run(args: argparse.Namespace) -> int:
    """Run `adaserve serve`. What can be checked at once is checked before anything slow begins."""
    engine = engine_config(args, args.max_queue)
    slos = slo_book(args)
    listener = listen(args.host, args.port)
    check_engine(engine)
    try:
        from adaserve.server.run import run_server
        from adaserve.server.service import ServerConfig
    except ImportError as error:
        raise InvalidConfig(f"the server needs {error.name}; run: pip install 'adaserve[server]'") from error
    if args.grace < 0:
        raise InvalidConfig(f"--grace must not be negative, got {args.grace:g}")
    logging.basicConfig(level=args.log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn").setLevel(logging.WARNING)
    server = ServerConfig(
        model_names=tuple(args.served_model_name) or (engine.model,),
        api_keys=tuple(args.api_key) or tuple(filter(None, [os.environ.get("ADASERVE_API_KEY")])),
        slos=slos,
        running=engine.max_num_seqs,
        waiting=engine.max_queue,
        grace=args.grace,
    )
    host, port = listener.getsockname()[:2]
    url = f"http://{'localhost' if host in ('127.0.0.1', '0.0.0.0', '::', '::1') else host}:{port}"

    def announce(facts: "Ready") -> None:
        say(f"serving {facts.description}")
        say(f"ready at {url} (stop with Ctrl-C); try:")
        wanted = {"prompt": "def fibonacci(n):", "max_tokens": 32, "temperature": 0, "slo": {"tpot_ms": 50}}
        body = {"model": server.model_names[0], **wanted}
        key = " -H 'authorization: Bearer KEY'" if server.api_keys else ""
        say(f"  curl {url}/v1/completions -H 'content-type: application/json'{key} -d '{json.dumps(body)}'")

    say(f"listening at {url}; loading {engine.model}")
    return run_server(engine, server, listener, say, announce)


def say(line: str) -> None:
    """Print a line to whoever started the server, at once."""
    print(line, flush=True)


def slo_book(args: argparse.Namespace) -> "SLOBook":
    """Make the server's SLO classes from the options; raises InvalidConfig."""
    from adaserve.server.slo import SLOBook, parse_class, parse_tier

    classes = dict(parse_class(text) for text in args.slo_class)
    if len(classes) < len(args.slo_class):
        raise InvalidConfig("an SLO class is given twice")
    return SLOBook(classes, args.default_slo, dict(parse_tier(text) for text in args.service_tier))


def listen(host: str, port: int) -> socket.socket:
    """Bind the port; raises InvalidConfig when that is not possible."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = (getattr(error, "strerror", None) or str(error)).partition(" (while")[0]  # what follows repeats host and port
        raise InvalidConfig(f"cannot listen on {host}:{port}: {reason}; choose another --port") from None
