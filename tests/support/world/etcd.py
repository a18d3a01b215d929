# SPDX-License-Identifier: MIT
"""An etcd in memory, which executes the agent's real transactions and answers as the gateway does."""

from __future__ import annotations

from base64 import b64decode, b64encode
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from credferry.agent.fleet import keys, transactions
from credferry.agent.fleet.etcd import Etcd
from credferry.agent.fleet.transport import EngineFault

if TYPE_CHECKING:
    from collections.abc import Callable

    from credferry.agent.fleet.model import Group


@dataclass
class ModelEtcd:
    """Keys with their revisions. It knows the transactions that the agent sends, and no others."""

    pairs: dict[bytes, tuple[bytes, int, int]] = field(default_factory=dict)
    """Content, create revision and mod revision, by key."""
    revision: int = 1
    cluster: str = "7"

    def execute(self, txn: transactions.Txn) -> transactions.TxnAnswer:
        """Carry out a transaction. Zero and false are left out, and integers are strings, as in etcd."""
        succeeded = all(map(self._holds, txn["compare"]))
        parts = [self._carry_out(each) for each in txn["success" if succeeded else "failure"]]
        document: dict[str, Any] = {"header": {"cluster_id": self.cluster, "revision": str(self.revision)}}
        if succeeded:
            document["succeeded"] = True
        if parts:
            document["responses"] = parts
        return transactions.answer(document)

    def _holds(self, compare: dict[str, Any]) -> bool:
        found = [self.pairs[key] for key in self._keys(compare)] or [(b"", 0, 0)]
        if compare["target"] == "CREATE":
            assert compare["result"] == "EQUAL"
            return all(each[1] == compare["create_revision"] for each in found)
        assert compare["target"] == "MOD"
        if compare["result"] == "LESS":
            return all(each[2] < compare["mod_revision"] for each in found)
        return all(each[2] == compare["mod_revision"] for each in found)

    def _carry_out(self, part: dict[str, Any]) -> dict[str, Any]:
        ((kind, request),) = part.items()
        if kind == "request_range":
            found = [
                {"key": b64encode(key).decode(), "value": b64encode(self.pairs[key][0]).decode()}
                | {"mod_revision": str(self.pairs[key][2])}
                for key in sorted(self._keys(request))
            ]
            return {"response_range": {"kvs": found, "count": str(len(found))} if found else {}}
        if kind == "request_put":
            self.put(b64decode(request["key"]), b64decode(request["value"]))
            return {"response_put": {}}
        for key in self._keys(request):
            self.delete(key)
        return {"response_delete_range": {}}

    def put(self, key: bytes, value: bytes) -> None:
        """Write a key."""
        self.revision += 1
        created = self.pairs[key][1] if key in self.pairs else self.revision
        self.pairs[key] = value, created, self.revision

    def delete(self, key: bytes) -> None:
        """Remove a key, if it exists."""
        if key in self.pairs:
            self.revision += 1
            del self.pairs[key]

    def _keys(self, request: dict[str, Any]) -> list[bytes]:
        key = b64decode(request["key"])
        if "range_end" not in request:
            return [key] if key in self.pairs else []
        return [each for each in self.pairs if key <= each < b64decode(request["range_end"])]

    def group(self, name: str) -> Group:
        """A group as it is now."""
        return transactions.group(name, self.execute(transactions.read(name)))

    def held(self, name: str) -> int:
        """How many slots of a group are held."""
        return sum(key.startswith(keys.slots(name).encode()) for key in self.pairs)


@dataclass
class ModelMember:
    """A member of a `ModelEtcd` as an agent reaches it. ``fate`` says what becomes of each request."""

    etcd: ModelEtcd
    url: str = "http://model"
    fate: Callable[[], str] = lambda: ""
    """``lost`` if it does not arrive, ``unanswered`` if it does, ``late`` if it may arrive later."""
    late: list[transactions.Txn] = field(default_factory=list)
    requests: int = 0

    def transaction(self, txn: transactions.Txn) -> transactions.TxnAnswer:
        """See `Member`."""
        self.requests += 1
        fate = self.fate()
        if fate == "late":
            self.late.append(txn)
        if fate in {"lost", "late"}:
            raise EngineFault("it does not answer", "wait")
        found = self.etcd.execute(txn)
        if fate == "unanswered":
            raise EngineFault("its answer was lost", "wait")
        return found

    def arrive(self) -> None:
        """What was late arrives now."""
        late, self.late = self.late, []
        for txn in late:
            self.etcd.execute(txn)

    def close(self) -> None:
        """See `Member`."""


def model_engine(*members: ModelMember, **options: Any) -> Etcd:  # noqa: ANN401 (as `Etcd` takes them)
    """The real engine, before modelled members."""
    return Etcd(members, **options)  # type: ignore[arg-type]  # it has the methods that are called
