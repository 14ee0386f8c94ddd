"""A finished folder in; the same files in a repository of a model hub out.

The token is huggingface_hub's own business (`hf auth login`, HF_TOKEN): it is never read into a
setting, printed or written. HF_ENDPOINT names another hub.
"""

from pathlib import Path

import huggingface_hub
from huggingface_hub.errors import (
    HfHubHTTPError,
    HFValidationError,
    LocalTokenNotFoundError,
    OfflineModeIsEnabled,
)
from huggingface_hub.utils import validate_repo_id

from core.errors import UserError

LOGIN = "log in with `hf auth login`, or set HF_TOKEN to a token that may write"


def check_push(repo: str) -> None:
    """Raise `UserError` for a bad name or a missing token, before anything is computed."""
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UserError(f"'{repo}' is no repository: write --push OWNER/NAME.") from error
    if repo.count("/") != 1:
        raise UserError(f"'{repo}' is no repository: write --push OWNER/NAME.")
    if huggingface_hub.get_token() is None:
        raise UserError(f"there is no token to push to {repo} with: {LOGIN}.")


def push(folder: Path, repo: str, message: str, private: bool = False) -> str:
    """Create the repository if need be and upload the folder in one commit; its address.

    Raises `UserError` for a missing token, missing rights or a hub that cannot be reached; the
    folder stays, and pushing again takes up no harm.
    """
    api = huggingface_hub.HfApi()
    try:
        api.create_repo(repo, private=private or None, exist_ok=True)
        api.upload_folder(
            repo_id=repo, folder_path=folder, commit_message=message, ignore_patterns=[".*"]
        )
    except LocalTokenNotFoundError as error:
        raise UserError(f"there is no token to push to {repo} with: {LOGIN}.") from error
    except HfHubHTTPError as error:
        raise UserError(f"{folder} is written but not pushed: {refusal(error, repo)}") from error
    except (OfflineModeIsEnabled, OSError) as error:
        raise UserError(
            f"{folder} is written but not pushed, because the hub cannot be reached: check the "
            "connection (and HF_HUB_OFFLINE), and push again."
        ) from error
    except Exception as error:  # the transport's own, and a card that the hub does not take
        raise UserError(
            f"{folder} is written but not pushed ({type(error).__name__}: {error}): check the "
            "connection and the first lines of its README.md, and push again."
        ) from error
    return f"{api.endpoint}/{repo}"


def refusal(error: HfHubHTTPError, repo: str) -> str:
    """Why the hub said no, and what to do."""
    code = error.response.status_code
    if code == 401:
        return f"the hub does not accept the token: {LOGIN}."
    if code in (403, 404):
        return (
            f"the token may not write to {repo}: name a repository of your own, or use a token "
            "with the right to write there."
        )
    return f"the hub answered {code}: push again later."
