"""The storage program as the tenant sees it: booted first, stopped for the forks, and handed to one worker.

One program serves the calls of all request VMs, so its VM goes on in the first worker, and there must be no other;
with ``--1-to-1`` each request VM starts one of its own, and this one only proves that the program works.
"""

import json
from typing import Any

from kvmserver import _vmm, errors, run_end
from kvmserver.channel import Channel, Message
from kvmserver.errors import KvmserverError, StartError
from kvmserver.run_end import RunEnd

# How the data plane begins its notes about the storage program; those about the other begin with other words.
_NOTE_PREFIX = "the storage program "
_DEATH_PREFIX = f"{_NOTE_PREFIX}failed: "
_NOTES_MAX = 64


class StorageProgram:
    """The storage program of one tenant, loaded; ``plan`` is the start message's description of it."""

    def __init__(self, plan: Message) -> None:
        self.plan = plan
        self.is_shared = not plan["one_to_one"]
        self._program = str(plan["program"])
        try:
            self._vm = _vmm.Storage(json.dumps(plan))
        except _vmm.VmmError as error:
            raise self._named(error) from error

    def load_caller(self, sandbox_config: str) -> "_vmm.Sandbox":
        """Load the program that calls this one."""
        return _vmm.Sandbox(sandbox_config, self._vm)

    def boot(self, control: Channel) -> None:
        """Run it until it waits for its first call. Raises StartError if it does not."""
        limit_ns = int(self.plan["boot_time_ns"])
        try:
            end = json.loads(self._vm.boot(limit_ns))
        except _vmm.VmmError as error:
            raise self._named(error) from error
        for note in _notes(end):
            control.send({"event": "log", "level": "warning", "message": f"storage program {self._program!r}: {note}"})
        run_end.after_storage_boot(end, self._program, limit_ns)
        control.send({"event": "storage_ready", "init_ns": end["init_ns"]})

    def death(self, end: RunEnd, when: str) -> StartError | None:
        """What to say if the end of a run of the other program tells that this one is dead."""
        note = next((note for note in _notes(end) if note.startswith(_NOTE_PREFIX)), None)
        return None if note is None else self._died(when, note)

    def suspend(self, when: str) -> None:
        """Stop it, so that this process can be forked. Raises StartError if it is dead, KvmserverError if it cannot."""
        try:
            self._vm.suspend()
        except _vmm.VmmError as error:
            message = errors.from_vmm(error).message
            raise (self._died(when, message) if message.startswith(_NOTE_PREFIX) else self._named(error)) from error

    def _died(self, when: str, reason: str) -> StartError:
        reason = reason.removeprefix(_DEATH_PREFIX).removeprefix(_NOTE_PREFIX)
        return StartError(f"the storage program {self._program!r} died {when}: {reason}")

    def _named(self, error: _vmm.VmmError) -> KvmserverError:
        """A failure of the data plane, with the name of the program that it is about."""
        failure = errors.from_vmm(error)
        message = f"storage program {self._program!r}: {failure.message}"
        return KvmserverError(message, failure.hint, failure.exit_code)

    def for_fork(self, is_first_life: bool) -> "_vmm.Storage | None":
        """In a new worker: the suspended VM if this is the one that goes on with it, else nothing of it is kept."""
        if self.is_shared and is_first_life:
            return self._vm
        self._vm.discard()
        return None

    def discard(self) -> None:
        """Let go of it in this process."""
        self._vm.discard()


def _notes(end: RunEnd) -> list[str]:
    notes: Any = end.get("notes")
    return [str(note) for note in notes[:_NOTES_MAX]] if isinstance(notes, list) else []
