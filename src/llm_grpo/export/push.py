"""Push a merged folder to the Hub: rights are checked before the long work, and the local copy always stays."""

from __future__ import annotations

import os
from pathlib import Path

from llm_grpo.errors import UserError

TOKEN_VARIABLE = "HF_TOKEN"


def make_repository(repo: str, private: bool) -> None:
    """Make the repository, if it is not there: the proof that the token may write. Raises UserError.

    `private` is for a new one; an existing repository stays as public as it is.
    """
    import httpx
    from huggingface_hub import HfApi

    token = os.environ.get(TOKEN_VARIABLE)
    if not token:
        raise UserError(
            f"--push needs a token with the right to write: set {TOKEN_VARIABLE} in the environment or in .env "
            "(https://huggingface.co/settings/tokens)."
        )
    try:
        HfApi(token=token).create_repo(repo, private=private, exist_ok=True)
    except (OSError, ValueError, httpx.HTTPError) as error:
        raise UserError(f"--push {repo}: the Hub refuses this repository: {_said(error, token)}") from error


def push(folder: Path, repo: str, again: str) -> str:
    """Upload the folder; returns the address. again: the command that tries once more, shown where it fails.

    What has arrived is not sent a second time when it is run again (huggingface_hub 1.33, upload_folder).
    """
    import httpx
    from huggingface_hub import HfApi

    token = os.environ.get(TOKEN_VARIABLE)
    try:
        HfApi(token=token).upload_folder(repo_id=repo, folder_path=folder, commit_message="Merged model by llm-grpo")
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:
        raise UserError(
            f"The push to {repo} failed: {_said(error, token)}. The model is whole in {folder}. Try again:\n  {again}"
        ) from error
    return f"https://huggingface.co/{repo}"


def _said(error: Exception, token: str | None) -> str:
    """The error's first line, never with the token in it."""
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return line.replace(token, "***") if token else line
