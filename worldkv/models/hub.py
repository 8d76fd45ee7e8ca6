"""The Hugging Face hub behind the `fetch.Hub` protocol, by way of huggingface_hub: its endpoint, login and settings."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, BinaryIO

from worldkv.errors import FetchError
from worldkv.models.encoders.library import library
from worldkv.models.fetch import HubFile

PURPOSE = "fetching weights"


class HuggingFace:
    """Raises ConfigError where the library is not installed."""

    def __init__(self) -> None:
        self._library = library("huggingface_hub", PURPOSE)
        self._errors = library("huggingface_hub.errors", PURPOSE)

    def files(self, repository: str) -> tuple[str, list[HubFile]]:
        """See `Hub.files`."""
        with self._told_plainly(repository):
            told = self._library.HfApi().model_info(repository, files_metadata=True)
        if told.sha is None:
            raise FetchError(f"{repository}: the hub does not say which commit is the newest")
        return told.sha, [_hub_file(one) for one in told.siblings or ()]

    def send(
        self, repository: str, commit: str, file: HubFile, start: int, into: BinaryIO, told: Callable[[int], None]
    ) -> None:
        """See `Hub.send`. A connection that breaks is tried again a few times."""
        headers = self._library.utils.build_hf_headers()
        url = self._library.hf_hub_url(repository, file.name, revision=commit)
        bar = _telling(library("tqdm", PURPOSE).tqdm, told)
        # The library's own way to a file keeps nothing of one that was cut off.
        http_get = library("huggingface_hub.file_download", PURPOSE).http_get
        with self._told_plainly(f"{repository}, {file.name}"):
            http_get(url, into, resume_size=start, headers=headers, expected_size=file.nbytes, tqdm_class=bar)

    @contextmanager
    def _told_plainly(self, what: str) -> Iterator[None]:
        """Faults of the library in one line; the disk's own are let through."""
        errors = self._errors
        try:
            yield
        except errors.GatedRepoError as fault:
            raise FetchError(
                f"{what}: gated: accept its terms on its page and log in there (hf auth login, or HF_TOKEN)"
            ) from fault
        except errors.RepositoryNotFoundError as fault:
            raise FetchError(f"{what}: no such repository, or one for which you must log in") from fault
        except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as fault:
            raise FetchError(f"{what}: not there any more") from fault
        except errors.OfflineModeIsEnabled as fault:
            raise FetchError(f"{what}: cannot be fetched while HF_HUB_OFFLINE is set") from fault
        except (errors.HTTPError, errors.LocalEntryNotFoundError) as fault:
            raise FetchError(f"{what}: the hub at {self._endpoint} {_reason(fault)}") from fault
        except OSError as fault:
            if fault.errno is not None:
                raise
            raise FetchError(f"{what}: did not come whole: {_one_line(fault)}") from fault

    @property
    def _endpoint(self) -> str:
        return str(library("huggingface_hub.constants", PURPOSE).ENDPOINT)


def _hub_file(sibling: Any) -> HubFile:
    sha256 = sibling.lfs.sha256 if sibling.lfs is not None else None
    return HubFile(sibling.rfilename, int(sibling.size or 0), sha256, None if sha256 else sibling.blob_id)


def _telling(bar: Any, told: Callable[[int], None]) -> Any:
    """A progress bar of the library's kind that shows nothing itself."""

    class Telling(bar):  # type: ignore[misc]  # of a library without types
        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})

        def update(self, n: float | None = 1) -> None:
            told(int(n or 0))

    return Telling


def _reason(fault: BaseException) -> str:
    """What the innermost of a chain of faults says, for the outer ones speak of caches."""
    response = getattr(fault, "response", None)
    if response is not None:
        return f"answers {response.status_code}"
    innermost = fault
    while (cause := innermost.__cause__ or innermost.__context__) is not None:
        innermost = cause
    return f"cannot be reached: {_one_line(innermost)}"


def _one_line(fault: BaseException) -> str:
    return " ".join(str(fault).split()) or type(fault).__name__
