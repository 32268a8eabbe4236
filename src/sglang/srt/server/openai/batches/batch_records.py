"""What is known of a file and of a batch, and how answers show it."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

Status = Literal["validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"]
ENDED = frozenset({"completed", "failed", "expired", "cancelled"})


class FileRecord(msgspec.Struct, kw_only=True):
    """`owner`: the digest of the API key whose file it is (RequestScope.key)."""

    id: str
    owner: str
    filename: str
    size: int
    purpose: str
    created_at: int
    expires_at: int | None = None

    def shown(self) -> dict[str, Any]:
        return {
            **{"id": self.id, "object": "file", "bytes": self.size, "created_at": self.created_at},
            **{"expires_at": self.expires_at, "filename": self.filename, "purpose": self.purpose},
            **{"status": "processed", "status_details": None},
        }


class BatchError(msgspec.Struct):
    """What is wrong with the input."""

    code: str
    message: str
    line: int | None = None
    param: str | None = None


class BatchRecord(msgspec.Struct, kw_only=True):
    """`output_seconds`: for which its files of answers are kept; None: until they are deleted. Times are seconds since 1970."""

    id: str
    owner: str
    endpoint: str
    input_file_id: str
    completion_window: str
    created_at: int
    expires_at: int
    status: Status = "validating"
    metadata: dict[str, str] | None = None
    output_seconds: int | None = None
    errors: list[BatchError] = []
    output_file_id: str | None = None
    error_file_id: str | None = None
    total: int = 0
    completed: int = 0
    failed: int = 0
    in_progress_at: int | None = None
    finalizing_at: int | None = None
    completed_at: int | None = None
    failed_at: int | None = None
    expired_at: int | None = None
    cancelling_at: int | None = None
    cancelled_at: int | None = None

    @property
    def has_ended(self) -> bool:
        return self.status in ENDED

    def shown(self) -> dict[str, Any]:
        hidden = {"owner", "output_seconds", "errors", "total", "completed", "failed"}
        found = {name: getattr(self, name) for name in self.__struct_fields__ if name not in hidden}
        errors = [{"code": e.code, "line": e.line, "message": e.message, "param": e.param} for e in self.errors]
        return {
            **found,
            "object": "batch",
            "errors": {"object": "list", "data": errors} if errors else None,
            "request_counts": {"total": self.total, "completed": self.completed, "failed": self.failed},
        }
