"""`pd chat`: a conversation with a running server."""

from __future__ import annotations

import argparse
import contextlib
import secrets
import sys
from typing import TYPE_CHECKING, Any

from pd.cli.arguments import add_client_flags, add_sampling_flags, sampling_values, server_url
from pd.errors import APIStatusError

if TYPE_CHECKING:
    from pd.client import Client

HELP = """\
/reset   begin a new conversation
/exit    leave; so does Ctrl-D
Ctrl-C   stops an answer"""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser(
        "chat",
        help="talk with the model",
        description=f"Talk with the model of a running server.\n\n{HELP}",
    )
    add_client_flags(parser)
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    add_sampling_flags(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from pd.client import Client

    terminal = sys.stdin.isatty()
    if terminal:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  # gives input() line editing and history
    with Client(server_url(args), api_key=args.api_key) as client:
        conversation = Conversation(client, args.system, sampling_values(args))
        if terminal:
            print(f"{client.models()[0]}; /help shows commands", file=sys.stderr)
        while (line := _read("> " if terminal else "")) is not None:
            if line == "/exit":
                break
            if line == "/reset":
                conversation.reset()
            elif line == "/help":
                print(HELP, file=sys.stderr)
            elif line.startswith("/"):
                print(f"unknown command {line}; /help shows them", file=sys.stderr)
            elif line:
                conversation.say(line)
    return 0


class Conversation:
    """Messages so far, the model's included."""

    def __init__(self, client: Client, system: str | None, params: dict[str, Any]) -> None:
        self._client = client
        self._params = params
        self._first = [] if system is None else [{"role": "system", "content": system}]
        self.messages: list[dict[str, str]] = []
        self.reset()

    def reset(self) -> None:
        self.messages = list(self._first)
        self._session_id = secrets.token_hex(8)

    def say(self, text: str) -> None:
        """Send a message and print the answer as it comes.

        What the server refuses is reported and taken back, so that the conversation can go on.
        """
        self.messages.append({"role": "user", "content": text})
        answer: list[str] = []
        try:
            with self._client.stream_chat(
                self.messages, session_id=self._session_id, **self._params
            ) as stream:
                for delta in stream:
                    answer.append(delta.text)
                    print(delta.text, end="", flush=True)
        except KeyboardInterrupt:
            print(" (stopped)", end="")
        except APIStatusError as error:
            print(f"the server refused that: {error}", file=sys.stderr)
            self.messages.pop()
            return
        print()
        self.messages.append({"role": "assistant", "content": "".join(answer)})


def _read(prompt: str) -> str | None:
    """A line from the user, or None when there are no more."""
    try:
        return input(prompt).strip()
    except EOFError:
        if prompt:
            print()
        return None
