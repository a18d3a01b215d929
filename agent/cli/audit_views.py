# SPDX-License-Identifier: MIT
"""The views of the audit that ``credferry audit`` gives."""

from __future__ import annotations

import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec
import typer

from credferry.agent.audit import chain, history, records
from credferry.agent.audit import html as timeline
from credferry.agent.audit import writer as journal
from credferry.agent.audit.periods import Period, periods
from credferry.agent.audit.records import Record
from credferry.agent.audit.rotations import Rotation, Story, of_credential, tell, within
from credferry.agent.cli import audit_forms as forms
from credferry.agent.cli.common import print_json
from credferry.agent.cli.tables import print_table
from credferry.agent.cli.terminal import say
from credferry.agent.config.calendar import analyze
from credferry.agent.config.loading import load
from credferry.agent.errors import ExitStatus, KeyFileError, StoreError
from credferry.agent.printable import json_text
from credferry.agent.sealing.keys import read_key, read_machine_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from credferry.agent.cli.documents import Document


@dataclass(frozen=True, slots=True)
class Views:
    """What is asked for. ``form`` is ``json``, ``csv``, or nothing, which is for people."""

    config: Path
    directory: Path | None
    form: str
    vm: str | None
    credential: str | None
    since: float | None
    until: float | None

    def story(self) -> None:
        """Each rotation as one story."""
        story, _ = self._story()
        if not self._print(forms.ROTATION_COLUMNS, map(forms.rotation_row, story.rotations)):
            for line in forms.story_lines(story):
                say(line)

    def records(self) -> None:
        """One record after the other."""
        records = [each for each in history.read(self.directory) if self._has(each)]
        self._know(records)
        if not self._print(forms.RECORD_COLUMNS, map(forms.record_row, records)):
            for each in records:
                say(forms.record_line(each))

    def follow(self) -> None:
        """Records as they come, until interrupted."""
        if self.form == "csv":
            forms.write_csv(forms.RECORD_COLUMNS, iter(()))

        def show(record: Record) -> None:
            if not self._has(record):
                return
            if self.form == "json":  # a document a line: the whole is never complete
                say(json_text(msgspec.to_builtins(forms.record_row(record))))
            elif self.form == "csv":
                forms.write_rows(forms.RECORD_COLUMNS, [forms.record_row(record)])
            else:
                say(forms.record_line(record))
            sys.stdout.flush()

        try:
            history.follow(self.directory, show, since=self.since)
        except KeyboardInterrupt:
            return

    def periods(self) -> None:
        """Which VM ran which fingerprint of which secret, from when to when."""
        _, found = self._story()
        rows = list(forms.period_rows(found, self.credential))
        if not self._print(forms.PERIOD_COLUMNS, rows):
            headings = ["VM", "CREDENTIAL", "FINGERPRINT", "GENERATION", "FROM (UTC)", "TO (UTC)", "END"]
            print_table(headings, map(forms.period_line, rows))

    def html(self, path: Path) -> None:
        """One page with a timeline per VM."""
        story, found = self._story()
        page = timeline.page(story, found, since=self.since, until=self.until)
        try:
            path.write_text(page, encoding="utf-8")
        except OSError as error:
            raise StoreError(
                f"{path}: cannot write the page: {error.strerror}", hint="choose another file with --html"
            ) from None

    def verify(self) -> None:
        """Check the chain; ends with status 1 where something is wrong with it."""
        config = load(self.config)
        try:
            key = read_key(
                Path(config.host_key), machine_id=read_machine_id(Path(config.machine_id_file))
            ).derive("audit")
        except FileNotFoundError:
            raise KeyFileError(
                f"{config.host_key}: the host key does not exist, and without it the audit cannot be "
                "verified",
                hint="restore it from a backup, or give a configuration whose host_key names a copy",
            ) from None
        state = Path(config.state_directory)
        # In this order, as the agent may go on meanwhile: what was sent was kept before, and is there.
        sent, _ = records.sent(state)
        head = journal.kept_head(state)
        links = list(history.links(self.directory))
        after = journal.kept_head(state)
        kept = chain.Kept(head.sequence, head.hash, sent, after.sequence if after else 0) if head else None
        verdict = chain.verify(links, key, kept)
        if self.form == "json":
            print_json(
                {
                    "ok": not verdict.findings,
                    "checked": verdict.checked,
                    "head": head.sequence if head else None,
                    "findings": list(verdict.findings),
                    "notes": list(verdict.notes),
                }
            )
        else:
            for each in verdict.findings:
                say(f"wrong: {each}")
            for each in verdict.notes:
                say(f"note: {each}")
            if not verdict.findings:
                say(f"ok: {verdict.checked} records; none was removed, edited, added or moved")
        if verdict.findings:
            raise typer.Exit(ExitStatus.FAILED)

    def _print(self, columns: Sequence[str], rows: Iterable[Document]) -> bool:
        """Print rows as JSON or CSV. Returns whether one of these is asked for."""
        if self.form == "json":
            print_json(list(rows))
        elif self.form == "csv":
            forms.write_csv(columns, rows)
        return bool(self.form)

    def _story(self) -> tuple[Story, list[Period]]:
        """What was asked for, out of the whole: an old value can only be known by what was long before."""
        loaded = history.load(self.directory)
        self._know(loaded.records)
        found = periods(loaded)
        story = tell(loaded.records, found)
        rotations = [each for each in story.rotations if self._has_rotation(each)]
        facts = [each for each in story.facts if self.credential is None and self._has(each)]
        return Story(tuple(rotations), tuple(facts)), [each for each in found if self._has_period(each)]

    def _has(self, record: Record) -> bool:
        at = record.time.timestamp()
        return (
            (self.vm is None or record.vm in {self.vm, ""})
            and (self.credential is None or self.credential in record.credentials)
            and (self.since is None or at >= self.since)
            and (self.until is None or at <= self.until)
        )

    def _has_rotation(self, rotation: Rotation) -> bool:
        if self.vm not in {None, rotation.vm} or not within(rotation, self.since, self.until):
            return False
        return self.credential is None or bool(of_credential([rotation], self.credential))

    def _has_period(self, period: Period) -> bool:
        return (
            self.vm in {None, period.vm}
            and (self.credential is None or self.credential in period.fingerprints)
            and (self.until is None or period.begin.timestamp() <= self.until)
            and (self.since is None or period.end is None or period.end.timestamp() >= self.since)
        )

    def _know(self, records: list[Record] | tuple[Record, ...]) -> None:
        """Raise `ConfigurationError` for a VM that neither the journal nor the configuration knows."""
        if self.vm is not None and all(each.vm != self.vm for each in records) and self.directory is None:
            load(self.config).vm(self.vm)


def parse_time(text: str | None, option: str) -> float | None:
    """A moment as journalctl takes it, in seconds since 1970: systemd itself is asked.

    Raises `typer.BadParameter`.
    """
    if text is None:
        return None
    try:
        asked = analyze("timestamp", "--", text)
    except (OSError, ValueError, subprocess.TimeoutExpired):
        raise typer.BadParameter("cannot run systemd-analyze to read the time", param_hint=option) from None
    found = re.search(r"UNIX seconds: @([0-9.]+)", asked.stdout)
    if asked.returncode or found is None:
        raise typer.BadParameter(f"{text!r} is not a time: see systemd.time(7)", param_hint=option)
    return float(found[1])
