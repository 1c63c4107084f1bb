"""The command that a card shows: that of this process, without secrets and without its author's folders."""

import json
import os
import re
from collections.abc import Sequence
from pathlib import Path, PureWindowsPath
from typing import Any


__all__ = ["publishable_command"]

_MASK = "***"
_WORD = re.compile(r"[A-Z]?[a-z0-9]+|[A-Z]+(?![a-z])")
_SECRET_WORDS = {
    *(
        "auth",
        "authorization",
        "bearer",
        "cookie",
        "jwt",
        "otp",
        "pass",
        "passcode",
        "pat",
        "pin",
        "pw",
        "pwd",
        "sas",
        "session",
    ),
    *("sessionid", "sig", "signature"),
}
_SECRET_PARTS = ("password", "passwd", "passphrase", "secret", "credential", "apikey", "accesskey", "privatekey")
# Words before or after "token" or "key" in a name that make it harmless. In doubt, a value is left out.
_HARMLESS = {
    "token": {
        *"pad mask eos bos cls sep unk start end image audio special stop max min num new text extra".split(),
        *"type types classification length level per count id ids limit".split(),
    },
    "key": {
        *"label text image input output target sort group primary foreign cache column metric index".split(),
        "by",
    },
}
_SERVICES = re.compile(
    r"\b(hf_[A-Za-z0-9]{20,}|(gh[pousr]|github_pat)_\w{16,}|glpat-[\w-]{16,}|sk-[\w-]{16,}|[sr]k_(live|test)_\w{16,}"
    r"|A[KS]IA[0-9A-Z]{12,}|xox[abeprs]-[\w-]{10,}|AIza[\w-]{30,}|ya29\.[\w-]{20,}|eyJ[\w-]{10,}\.[\w.-]{10,}"
    r"|npm_\w{20,}|pypi-[\w-]{16,}|dop_v1_\w{16,}|SG\.[\w-]{10,}\.[\w-]{10,}|hooks\.slack\.com/services/\S+)"
)
_USER = re.compile(r"://\S+@")
_USER_AND_PASSWORD = re.compile(r"(?<![\w/])[\w.-]+:(?!//)[^\s@:]+@(?=[\w.-]+)")
_QUERY = re.compile(r"(\w+://[^\s?]*\?)\S+")
# At the start, after a delimiter or after a one-letter flag: an absolute path, or one that contains "../".
_PATH = re.compile(
    r"""(^|[\s=,:;@"'\[({]|^-\w)((?:file:)?/{1,3}(?=[^/\s])[^\s,;:"'\])}]*|(?:[\w.-]+/)*\.\./[^\s,;"'\])}]*|[A-Za-z]:[\\/].*)"""
)
_HEADER = re.compile(r"^([\w-]+):\s.*$", re.DOTALL)
_SCHEME = re.compile(r"\b(Bearer|Basic)\s+\S+", re.IGNORECASE)
_PAIR = re.compile(r"""(["']?)([\w.-]+)\1(\s*[=:]\s*)(["']?)(\[[^\]]*\]|[^\s"',;&}]+)""")


def publishable_command(command: Sequence[str], secrets: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """A command without secrets or personal paths, for publication in a card.

    Flags such as ``--hub_token`` are left out with their values. Tokens of known services, users and queries of URLs,
    secret headers and code after ``-c`` are replaced by ``***``. Absolute paths become relative to the working folder
    or, outside of it, are reduced to their last part.

    Args:
        command (sequence of `str`): As in `sys.orig_argv`, or flags alone.
        secrets (sequence of `str`): Strings to be replaced wherever they occur.

    Returns:
        `tuple[list[str], list[str]]`: The command, and a sentence for each omission.

    Example:

    ```python
    >>> from hf_focal.model_card import publishable_command
    >>> publishable_command(["python", "/home/ann/train.py", "--hub_token", "abc"])
    (['python', 'train.py'], ['Files outside the working folder ... without their folders.', 'The command ... --hub_token.'])

    ```
    """
    relative, here = without_paths(command), f"{Path.cwd()}/"
    is_cut = relative != [argument.replace(here, "") for argument in command]
    remaining, left_out = without_secrets(relative, secrets)
    omissions = ["Files outside the working folder are shown without their folders."] * is_cut
    return remaining, omissions + [f"The command is shown without {', '.join(left_out)}."] * bool(left_out)


def without_secrets(command: Sequence[str], secrets: Sequence[str] = ()) -> tuple[list[str], list[str]]:
    """The command without flags such as --hub_token and without `secrets`, and the names of what is left out.

    Tokens of known services, users and queries of URLs, secret headers and code after ``-c`` are replaced by ``***``.
    """
    remaining: list[str] = []
    left_out: list[str] = []
    is_value = is_code = False
    is_before_script = True
    for argument in command:
        is_value = is_value and not argument.startswith("--")
        if is_value:  # some flags take several values
            continue
        if is_code:
            remaining.append(_MASK)
            left_out.append("-c")
            is_code = is_before_script = False
            continue
        name, equals, _ = argument.partition("=")
        is_secret = bool((equals or name.startswith("-")) and re.fullmatch(r"[\w.-]+", name) and _is_secret(name))
        is_value = is_secret and not equals
        is_code = is_before_script and argument == "-c"
        is_before_script &= argument.startswith("-") or argument == command[0]
        (left_out if is_secret else remaining).append(name if is_secret else argument)
    for secret in secrets:
        remaining = [argument.replace(secret, _MASK) for argument in remaining]
    masked = [_masked(argument) for argument in remaining]
    changed = [old for old, new in zip(remaining, masked) if new.count(_MASK) > old.count(_MASK)]
    left_out += [argument.partition("=")[0][:40] for argument in changed]
    return masked, [_masked(name) for name in dict.fromkeys(left_out)]


def without_paths(command: Sequence[str]) -> list[str]:
    """The command with absolute paths relative to the working folder or, outside of it, reduced to their last part."""
    return [_relative(argument) for argument in command]


def _is_secret(name: str) -> bool:
    words = [word.lower().rstrip("0123456789") for word in _WORD.findall(name)]
    if len(words) > 1:
        words = [word.removesuffix("s") if word in ("tokens", "keys") else word for word in words]
    if {*words} & _SECRET_WORDS or any(part in "".join(words) for part in _SECRET_PARTS):
        return True
    for secret, harmless in _HARMLESS.items():
        for k, word in enumerate(words):
            if word == secret and not {*words[max(k - 1, 0) : k], *words[k + 1 : k + 2]} & harmless:
                return True
            if word.endswith(secret) and word != secret and not word.removesuffix(secret).endswith(tuple(harmless)):
                return True
    return False


def _masked(argument: str) -> str:
    if " --" in f" {argument}" and len(argument.split()) > 1 and without_secrets(argument.split())[1]:
        return _MASK  # a command as the value of a flag
    name, equals, value = argument.partition("=") if argument.startswith("--") else ("", "", argument)
    try:
        content = json.loads(value) if value[:1] in ("{", "[") else None
    except (ValueError, RecursionError):
        content = None
    if content is not None:
        masked = _without_secret_keys(content)
        value = value if masked == content else json.dumps(masked)
    header = _HEADER.match(value)
    if header and _is_secret(header[1]):
        value = f"{header[1]}: {_MASK}"
    value = _QUERY.sub(rf"\1{_MASK}", _USER.sub(f"://{_MASK}@", _USER_AND_PASSWORD.sub(f"{_MASK}@", value)))
    value = _SCHEME.sub(rf"\1 {_MASK}", _PAIR.sub(_masked_pair, value))
    return _SERVICES.sub(_MASK, name + equals + value)


def _masked_pair(match: re.Match[str]) -> str:
    quote, name, equals, before, _ = match.groups()
    return f"{quote}{name}{quote}{equals}{before}{_MASK}" if _is_secret(name) else match[0]


def _without_secret_keys(content: Any) -> Any:
    if isinstance(content, dict):
        return {name: _MASK if _is_secret(name) else _without_secret_keys(value) for name, value in content.items()}
    if isinstance(content, list):
        is_command = all(isinstance(one, str) for one in content)
        return _MASK if is_command and without_secrets(content)[1] else [*map(_without_secret_keys, content)]
    return content


def _relative(argument: str) -> str:
    """The argument with each path in it made relative, or reduced to its last part."""
    if "://" in argument and not argument.startswith("file:"):
        return argument
    return _PATH.sub(lambda match: match[1] + _shortened(match[2]), argument)


def _shortened(path: str) -> str:
    path = re.sub(r"^file:/*", "/", path)
    if PureWindowsPath(path).drive:
        return PureWindowsPath(path).name
    where, here = Path(os.path.normpath(path)), Path.cwd()
    if where.is_absolute():
        return str(where.relative_to(here)) if where.is_relative_to(here) else where.name
    known = where.parts[:1] == ("..",) and {*where.parts} & {*here.parts}
    return where.name if known else path
