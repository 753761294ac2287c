"""Push a folder to the Hub: token and rights are checked before the long work, and the local copy always stays.

What has arrived is not sent a second time, so that a push that broke off is gone on with by running it again
(huggingface_hub 1.33: by LFS object, or by chunk through Xet).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

from llm_grpo.errors import UserError, hub_errors

TOKEN_VARIABLE = "HF_TOKEN"
TOKEN_PAGE = "https://huggingface.co/settings/tokens"
LEFT_OUT = [".*", "validation.json"]  # drafts; what training keeps beside its best adapter
# Between whole tries, after huggingface_hub has tried each request five times within 23 s by itself.
WAITS_S = (5, 20, 60)
CHECK_WAITS_S = (1, 3)
PASSING = (408, 429, 500, 502, 503, 504)  # HTTP statuses that another try may not see
T = TypeVar("T")


def check_rights(repo: str, private: bool, say: Callable[[str], None] = lambda _: None) -> None:
    """Raise UserError unless the token in HF_TOKEN may write to `repo`. Nothing is made or sent.

    private: the wish for a private repository, which one that exists and is public cannot meet.
    """
    from huggingface_hub.errors import HfHubHTTPError, RepositoryNotFoundError
    from huggingface_hub.utils import validate_repo_id

    if repo.count("/") != 1:
        raise UserError(f"--push {repo}: write it as USER/NAME.")

    def look(api: Any) -> None:
        validate_repo_id(repo)
        who = api.whoami()
        _check_token(who, repo)
        try:
            info = api.repo_info(repo)
        except RepositoryNotFoundError:  # there is none, or none that may be seen
            return _check_namespace(who, repo)
        if private and not info.private:
            raise UserError(
                f"--push {repo} --private: the repository is there and is public. Make it private in its settings "
                "first, choose another name, or leave --private out."
            )
        try:
            return api.auth_check(repo, write=True)
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403):
                raise
            raise UserError(
                f"--push {repo}: it is there, and the token in {TOKEN_VARIABLE} may not write to it."
            ) from None

    _ask(look, _token(), f"--push {repo}", say)


def upload(
    folder: Path,
    repo: str,
    private: bool,
    again: str,
    say: Callable[[str], None] = lambda _: None,
    waits_s: Sequence[float] = WAITS_S,
) -> str:
    """Make the repository if it is not there, upload the folder, return the address. Raises UserError.

    again: the command that goes on where this one ended, shown where it fails. waits_s: between tries after a
    connection that was cut, a rate limit (429) or a fault of the server (5xx).
    """
    token = _token()

    def send(api: Any) -> str:
        api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message="Upload by llm-grpo", ignore_patterns=list(LEFT_OUT)
        )
        return f"{api.endpoint}/{repo}"

    way_out = f"Everything is whole in {folder}. What has arrived is not sent again:\n  {again}"
    return _ask(send, token, f"The push to {repo} failed", say, waits_s, way_out)


def _token() -> str:
    token = os.environ.get(TOKEN_VARIABLE, "").strip()
    if not token:
        raise UserError(
            f"--push needs a token with the right to write: set {TOKEN_VARIABLE} in the environment or in .env "
            f"({TOKEN_PAGE})."
        )
    if not re.fullmatch("[!-~]+", token):  # an error of the HTTP library would show it
        raise UserError(f"{TOKEN_VARIABLE} holds spaces or signs that no token has. Copy it anew from {TOKEN_PAGE}.")
    return token


def _ask(
    question: Callable[[Any], T],
    token: str,
    what: str,
    say: Callable[[str], None],
    waits_s: Sequence[float] = CHECK_WAITS_S,
    way_out: str = "",
) -> T:
    """The answer of the Hub, after a few tries where a fault may pass. Raises UserError, never with the token in it."""
    from huggingface_hub import HfApi, logging

    logging.set_verbosity_error()  # it warns of each of its own tries, with the signed address it tried
    for wait_s in (*waits_s, None):
        try:
            return question(HfApi(token=token))
        except UserError:
            raise
        except hub_errors() as error:
            said = _said(error).replace(token, "***")
            if wait_s is None or not _may_pass(error):
                raise UserError(f"{what}: {said}." + (f"\n{way_out}" if way_out else "")) from None
            say(f"{said}. Trying again in {wait_s:g} s.")
            time.sleep(wait_s)
    raise AssertionError("the last try returns or raises")


def _chain(error: BaseException) -> list[BaseException]:
    """The error and what it came from; huggingface_hub hides the reason of a failed upload one deeper."""
    found: list[BaseException] = []
    while error is not None and error not in found:
        found.append(error)
        error = error.__cause__
    return found


def _may_pass(error: BaseException) -> bool:
    """Whether another try may do. An upload error without a reason, as Xet raises them, may."""
    import httpx

    for part in _chain(error):
        response = getattr(part, "response", None)
        if response is not None:
            return response.status_code in PASSING
        if isinstance(part, (httpx.TimeoutException, httpx.NetworkError, httpx.RemoteProtocolError)):
            return True
    return isinstance(error, RuntimeError)


def _said(error: BaseException) -> str:
    """The first lines of each message in the chain: what failed, and why. Queries of URLs hold signatures: left out."""
    lines = [line.strip() for part in _chain(error) for line in (str(part) or type(part).__name__).splitlines()[:4]]
    told = " ".join(dict.fromkeys(line for line in lines if line and not line.startswith("For more information")))
    return re.sub(r"(https?://[^\s'\"?]+)\?[^\s'\"]*", r"\1", told).rstrip(".")


def _check_token(who: dict[str, Any], repo: str) -> None:
    """Refuse a token that can only read. Fine-grained ones name their rights (seen in whoami-v2's answers)."""
    token = who.get("auth", {}).get("accessToken", {})
    role = token.get("role")
    fine = token.get("fineGrained", {})
    granted = {*fine.get("global", []), *(p for scope in fine.get("scoped", []) for p in scope.get("permissions", []))}
    if role == "read" or (role == "fineGrained" and "repo.write" not in granted):
        raise UserError(
            f"--push {repo}: the token in {TOKEN_VARIABLE} ('{token.get('displayName', 'unnamed')}' of "
            f"{who.get('name')}) may only read. Make one with the right to write: {TOKEN_PAGE}"
        )


def _check_namespace(who: dict[str, Any], repo: str) -> None:
    """A new repository needs a place the user may write to: their own name, or an organisation they are more than a
    reader of. A fine-grained token may not list organisations; then the Hub decides when the repository is made."""
    namespace = repo.partition("/")[0]
    roles = {org.get("name"): org.get("roleInOrg") for org in who.get("orgs", [])}
    if namespace == who.get("name") or (namespace in roles and roles[namespace] != "read"):
        return
    if namespace not in roles and who.get("auth", {}).get("accessToken", {}).get("role") == "fineGrained":
        return
    places = [who.get("name"), *(name for name, role in roles.items() if role != "read")]
    raise UserError(
        f"--push {repo}: there is no such repository, and '{namespace}' is no place where this token may make one. "
        f"It may under: {', '.join(map(str, places))}."
    )
