"""Standard output and error for commands that read untrusted files, without characters that control a terminal."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

from hf_focal.model_card import one_line


class PlainStream:
    """Writes lines without invisible characters and escape sequences."""

    def __init__(self, stream: TextIO):
        self.stream = stream

    def write(self, text: str) -> int:
        plain = "\n".join(
            "" if line.isspace() else line if line.isprintable() else one_line(line) for line in text.split("\n")
        )
        self.stream.write(plain)
        return len(text)

    def isatty(self) -> bool:
        return False

    def __getattr__(self, name: str):
        return getattr(self.stream, name)


@contextmanager
def plain_streams() -> Iterator[None]:
    """Enter this before importing modules that log: their handlers keep the stream that they find."""
    streams = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = PlainStream(sys.stdout), PlainStream(sys.stderr)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = streams
