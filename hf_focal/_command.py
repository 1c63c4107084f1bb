"""The command that a card shows: of this process, without secrets and without the folders of its author."""

import json
import re
from collections.abc import Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any


__all__ = ["publishable_command"]

_MASK = "***"
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = {"auth", "authorization", "bearer", "cookie", "jwt", "pat", "pwd", "sas", "sig", "signature"}
_SECRET_PARTS = ("password", "passwd", "passphrase", "secret", "credential", "apikey", "accesskey", "privatekey")
# Of names that end with token or key, those that are known to be no secret; in doubt a value is left out.
_HARMLESS = {
    "token": "pad mask eos bos cls sep unk start end image audio special stop",
    "key": "label text image input output target sort group primary foreign cache column metric index",
}
_SERVICES = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|(gh[pousr]|github_pat)_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|[sr]k_(live|test)_\w{16,}"
    r"|A[KS]IA[0-9A-Z]{12,}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|eyJ[\w-]{10,}\.[\w.-]{10,})"
)
_USER = re.compile(r"://[^/\s@]+@")
_QUERY = re.compile(r"(\w+://[^\s?]*\?)\S+")
_HEADER = re.compile(r"^([\w-]+):\s.*$", re.DOTALL)
_SCHEME = re.compile(r"\b(Bearer|Basic)\s+\S+", re.IGNORECASE)
_PAIR = re.compile(r"""(["']?)([\w.-]+)\1(\s*[=:]\s*)(["']?)([^\s"',;&}]+)""")


def publishable_command(command: Sequence[str], secrets: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """A command that says nothing of who ran it, as a card may show it.

    The values of flags such as ``--hub_token`` are left out, and tokens of known services, users and queries of URLs, headers
    and code after ``-c`` are replaced by ``***``. Absolute paths become relative to the working folder, or outside of it
    their last part.

    Args:
        command (sequence of `str`): As in `sys.orig_argv`, or flags alone.
        secrets (sequence of `str`): To be replaced wherever they stand.

    Returns:
        `tuple[list[str], list[str]]`: The command, and a sentence for each thing that it lacks.

    Example:

    ```python
    >>> from hf_focal.model_card import publishable_command
    >>> publishable_command(["python", "/home/ann/train.py", "--hub_token", "abc"])
    (['python', 'train.py'], ['Files outside the folder that ... are named without where they are.', 'The command ... --hub_token.'])

    ```
    """
    relative, here = without_paths(command), f"{Path.cwd()}/"
    is_cut = relative != [argument.replace(here, "") for argument in command]
    kept, left_out = without_secrets(relative, secrets)
    lacks = ["Files outside the folder that the command was run in are named without where they are."] * is_cut
    return kept, lacks + [f"The command is given without {', '.join(left_out)}."] * bool(left_out)


def without_secrets(command: Sequence[str], secrets: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The command without the values of flags such as --hub_token and without `secrets`, and the names of what is left out.

    Tokens of known services, users and queries of URLs, headers and code after ``-c`` are replaced by ``***``.
    """
    kept: list[str] = []
    left_out: list[str] = []
    is_value = is_code = False
    is_before_script = True
    for argument in command:
        if is_value and not argument.startswith("-"):
            is_value = False
            continue
        if is_code:
            kept.append(_MASK)
            left_out.append("-c")
            is_code = is_before_script = False
            continue
        name, equals, _ = argument.partition("=")
        is_secret = bool((equals or name.startswith("-")) and re.fullmatch(r"[\w.-]+", name) and _is_secret(name))
        is_value = is_secret and not equals
        is_code = is_before_script and argument == "-c"
        is_before_script &= argument.startswith("-") or argument == command[0]
        (left_out if is_secret else kept).append(name if is_secret else argument)
    for secret in secrets:
        kept = [argument.replace(secret, _MASK) for argument in kept]
    masked = [_masked(argument) for argument in kept]
    left_out += [old.partition("=")[0][:40] for old, new in zip(kept, masked) if new.count(_MASK) > old.count(_MASK)]
    return masked, [_masked(name) for name in dict.fromkeys(left_out)]


def without_paths(command: Sequence[str]) -> list[str]:
    """The command with absolute paths relative to the working folder, or outside of it only their last part."""
    return [_relative(argument) for argument in command]


def _is_secret(name: str) -> bool:
    words = [word.lower() for word in _WORD.findall(name)]
    joined = "".join(words)
    if {*words} & _SECRET_WORDS or any(part in joined for part in _SECRET_PARTS):
        return True
    for end, harmless in _HARMLESS.items():
        if joined.endswith(end):
            return not joined.removesuffix(end).endswith(tuple(harmless.split()))
    return False


def _masked(argument: str) -> str:
    name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    try:
        content = json.loads(value) if value[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        content = None
    if content is not None:
        without = _without_secret_keys(content)
        value = value if without == content else json.dumps(without)
    header = _HEADER.match(value)
    if header and _is_secret(header[1]):
        value = f"{header[1]}: {_MASK}"
    value = _QUERY.sub(rf"\1{_MASK}", _USER.sub(f"://{_MASK}@", value))
    value = _SCHEME.sub(rf"\1 {_MASK}", _PAIR.sub(_masked_pair, value))
    return _SERVICES.sub(_MASK, name + equals + value)


def _masked_pair(match: re.Match[str]) -> str:
    quote, name, equals, before, _ = match.groups()
    return f"{quote}{name}{quote}{equals}{before}{_MASK}" if _is_secret(name) else match[0]


def _without_secret_keys(content: Any) -> Any:
    if isinstance(content, dict):
        return {
            name: _MASK if _is_secret(name) and not isinstance(value, dict) else _without_secret_keys(value)
            for name, value in content.items()
        }
    return [_without_secret_keys(one) for one in content] if isinstance(content, list) else content


def _relative(argument: str) -> str:
    name, equals, value = argument.partition("=") if argument.startswith("-") else ("", "", argument)
    if "://" in value or not (PurePosixPath(value).is_absolute() or PureWindowsPath(value).is_absolute()):
        return argument
    if PureWindowsPath(value).drive:
        return name + equals + PureWindowsPath(value).name
    path, here = Path(value), Path.cwd()
    return name + equals + (str(path.relative_to(here)) if path.is_relative_to(here) else path.name)
