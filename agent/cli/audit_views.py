# SPDX-License-Identifier: MIT
"""The views of the audit that ``credferry audit`` gives."""

from __future__ import annotations

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
from credferry.agent.cli.terminal import say, warn
from credferry.agent.config.choosing import chosen, fits
from credferry.agent.config.loading import load
from credferry.agent.config.model import nearest
from credferry.agent.errors import ConfigurationError, ExitStatus, Interrupted, KeyFileError, StoreError
from credferry.agent.printable import json_text
from credferry.agent.sealing.keys import read_key, read_machine_id

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from datetime import tzinfo

    from credferry.agent.cli.documents import Document


@dataclass(frozen=True, slots=True)
class Views:
    """What is asked for. ``form`` is ``json``, ``csv``, or nothing, which is for people."""

    config: Path
    directory: Path | None
    form: str
    vms: tuple[str, ...]
    """Names and patterns; none for all."""
    credential: str | None
    since: float | None
    until: float | None
    where: tzinfo | None
    """The time zone for people; None for the host's."""

    def story(self) -> None:
        """Each rotation as one story."""
        story, _ = self._story()
        if not self._print(forms.ROTATION_COLUMNS, map(forms.rotation_row, story.rotations)):
            _say_all(forms.story_lines(story, self.where))

    def records(self) -> None:
        """One record after the other."""
        records = [each for each in history.read(self.directory) if self._has(each)]
        self._know(records)
        if not self._print(forms.RECORD_COLUMNS, map(forms.record_row, records)):
            _say_all(forms.record_line(each, self.where) for each in records)

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
                say(forms.record_line(record, self.where))
            sys.stdout.flush()

        try:
            history.follow(self.directory, show, since=self.since)
        except Interrupted:
            return

    def periods(self) -> None:
        """Which VM ran which fingerprint of which secret, from when to when."""
        _, found = self._story()
        rows = list(forms.period_rows(found, self.credential))
        if not self._print(forms.PERIOD_COLUMNS, rows):
            headings = ["VM", "CREDENTIAL", "FINGERPRINT", "GENERATION", "FROM", "TO", "END"]
            print_table(
                headings,
                [forms.period_line(row, self.where) for row in rows],
                ("GENERATION", "END", "TO"),
            )

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
            (not record.vm or fits(record.vm, self.vms))
            and (self.credential is None or self.credential in record.credentials)
            and (self.since is None or at >= self.since)
            and (self.until is None or at <= self.until)
        )

    def _has_rotation(self, rotation: Rotation) -> bool:
        if not fits(rotation.vm, self.vms) or not within(rotation, self.since, self.until):
            return False
        return self.credential is None or bool(of_credential([rotation], self.credential))

    def _has_period(self, period: Period) -> bool:
        return (
            fits(period.vm, self.vms)
            and (self.credential is None or self.credential in period.fingerprints)
            and (self.until is None or period.begin.timestamp() <= self.until)
            and (self.since is None or period.end is None or period.end.timestamp() >= self.since)
        )

    def _know(self, records: Sequence[Record]) -> None:
        """Raise `ConfigurationError` for what neither the journal nor the configuration knows.

        That is a VM or a credential. A journal from elsewhere may know less than was asked for.
        """
        if self.directory is not None:
            return
        vms = {each.vm for each in records}
        unknown = [name for name in self.vms if not any(fits(vm, [name]) for vm in vms)]
        if unknown:
            chosen(load(self.config), unknown)
        if self.credential is None or any(self.credential in each.credentials for each in records):
            return
        known = {name for vm in load(self.config).vms.values() for name in vm.credentials}
        if self.credential not in known:
            known.update(name for each in records for name in each.credentials)
            raise ConfigurationError(
                f"neither the journal nor {self.config} has a credential {self.credential!r}",
                hint=f"use {nearest(self.credential, known)}",
            )


def _say_all(lines: Iterable[str]) -> None:
    """Print lines; if there are none, say so on standard error."""
    line = None
    for line in lines:
        say(line)
    if line is None:
        warn("the journal has no such record of the audit")
