"""What an administrator can do. Each act writes its row of the audit log in its own transaction."""

from __future__ import annotations

from typing import Any, cast

from sqlalchemy import Connection

from serve.errors import BadRequest, Conflict, NotFound
from serve.tenants import keys
from serve.tenants.given import Given, KeyGiven, OrganisationGiven, TenantGiven, check_id
from serve.tenants.reading import ID
from serve.tenants.rows import KeyRow, NewKey, OrganisationRow, Row, TenantRow
from serve.tenants.writing import Columns, Rows
from serve.words import Level, Secret

_ORGANISATION: dict[str, Any] = {"limits": {}, "suspended": False}
_TENANT: dict[str, Any] = {"weight": 1.0, "band": "standard", "models": None, "limits": {}, "ceilings": {},
                           "suspended": False}  # fmt: skip
_KEY: dict[str, Any] = {"name": "", "scopes": ["generate", "usage"], "models": None, "limits": {}, "expires_at": None,
                        "suspended": False}  # fmt: skip
_CHILD: dict[Level, Level] = {"organisation": "tenant", "tenant": "key"}


class Acts:
    """The acts of one transaction, by one actor, under one change number."""

    def __init__(self, connection: Connection, pepper: Secret, actor: str, number: int, now: float) -> None:
        self._rows, self._pepper, self._actor, self._number, self._now = Rows(connection), pepper, actor, number, now
        self.told = list[tuple[str, Level, str]]()  # what was done: act, level, id

    def expect_many(self) -> None:
        """Read everything once, and write at the end: for acts by the thousand."""
        self._rows.read_all()

    def flush(self) -> None:
        """Write what waits. Called at the end of the transaction."""
        self._rows.flush()

    def find(self, level: Level, object_id: str) -> Row | None:
        columns = self._rows.found(level, object_id)
        return None if columns is None or columns["removed"] else self._rows.value(level, columns)

    def page(self, level: Level, parent_id: str | None = None) -> list[Row]:
        return self._rows.page(level, parent_id)

    def create_organisation(self, organisation_id: str, given: OrganisationGiven) -> OrganisationRow:
        check_id(organisation_id)
        return cast(OrganisationRow, self._create("organisation", organisation_id, {}, _ORGANISATION, given))

    def create_tenant(self, tenant_id: str, organisation_id: str, given: TenantGiven) -> TenantRow:
        check_id(tenant_id)
        self._living("organisation", organisation_id, "organisation")
        parent = {"organisation_id": organisation_id}
        return cast(TenantRow, self._create("tenant", tenant_id, parent, _TENANT, given))

    def create_key(self, tenant_id: str, given: KeyGiven) -> NewKey:
        """A key with one secret. Conflict where the tenant has a key of that name."""
        if given.name is None:
            raise BadRequest("name: a key needs one, so that people can tell keys apart", "name")
        columns = {**_KEY, **given.merged(_KEY)}
        self._check_key(columns, tenant_id, self._living("tenant", tenant_id))
        key_id = keys.new_key_id()
        self._create("key", key_id, {"tenant_id": tenant_id}, _KEY, given)
        return self._with_new_secret(key_id)

    def change(self, level: Level, object_id: str, given: Given) -> Row:
        """Set what is given. Nothing is written, and nobody is told, where it is so already."""
        before = self._living(level, object_id)
        changed = {name: value for name, value in given.merged(before).items() if value != before[name]}
        if level == "key" and changed:
            self._check_key({**before, **changed}, before["tenant_id"], self._living("tenant", before["tenant_id"]))
        if changed:
            self._update(level, object_id, changed)
            act = "change"
            if changed.keys() == {"suspended"}:
                act = "suspend" if changed["suspended"] else "resume"
            self._tell(act, level, object_id, {name: [before[name], value] for name, value in changed.items()})
        return self._rows.value(level, {**before, **changed})

    def suspend(self, level: Level, object_id: str) -> Row:
        """Refuse its requests from the next second on, until it is resumed."""
        return self.change(level, object_id, OrganisationGiven(suspended=True))

    def resume(self, level: Level, object_id: str) -> Row:
        return self.change(level, object_id, OrganisationGiven(suspended=False))

    def remove(self, level: Level, object_id: str) -> None:
        """For good, with everything below: keys lose their secrets, and no id is ever given again."""
        self._living(level, object_id)
        if level in _CHILD:
            for child in self._rows.page(_CHILD[level], object_id):
                self.remove(_CHILD[level], getattr(child, ID[_CHILD[level]]))
        else:
            self._rows.end_secrets(object_id)
        self._update(level, object_id, {"removed": True})
        self._tell("revoke" if level == "key" else "remove", level, object_id, {})

    def rotate(self, key_id: str, grace_s: float) -> NewKey:
        """A second secret; the first expires after the grace. With a grace of 0 all older secrets end now."""
        if not 0 <= grace_s <= 366 * 86400:
            raise BadRequest("grace_s: between 0 seconds and a year", "grace_s")
        key = cast(KeyRow, self._rows.value("key", self._living("key", key_id)))
        live = [s for s in key.secrets if s.expires_at is None or s.expires_at > self._now]
        if grace_s and len(live) > 1:
            raise Conflict(
                "this key has two live secrets: wait for the end of the older, or rotate with a grace of 0", "grace_s"
            )
        ended = [s.digest for s in key.secrets if s not in live or not grace_s]
        self._rows.end_secrets(key_id, ended)
        until = self._now + grace_s
        for secret in live if grace_s else []:
            self._rows.expire_secret(secret.digest, until)
        self._update("key", key_id, {})
        self._tell("rotate", "key", key_id, {"grace_s": [None, grace_s]})
        return self._with_new_secret(key_id)

    def _create(self, level: Level, object_id: str, parent: Columns, defaults: Columns, given: Given) -> Row:
        if self._rows.found(level, object_id):
            raise Conflict(f"the {level} {object_id} exists already, or existed: ids are not given twice", "id")
        columns = {ID[level]: object_id, **parent, **defaults, **given.merged(defaults)}
        columns |= {"removed": False, "created_at": self._now, "change": self._number}
        self._rows.add(level, columns)
        told = {**parent, **{n: columns[n] for n in defaults if columns[n] != defaults[n]}}
        self._tell("create", level, object_id, {name: [None, value] for name, value in told.items()})
        return self._rows.value(level, columns)

    def _with_new_secret(self, key_id: str) -> NewKey:
        secret = keys.new_secret()
        row = {"digest": keys.digest(self._pepper, secret), "key_id": key_id, "created_at": self._now}
        self._rows.add_secret(row)
        key = self._rows.value("key", self._living("key", key_id))
        return NewKey(cast(KeyRow, key), keys.text_of(key_id, secret))

    def _living(self, level: Level, object_id: str, field: str | None = None) -> Columns:
        columns = self._rows.found(level, object_id)
        if columns is None or columns["removed"]:
            raise NotFound(f"there is no {level} {object_id}", field)
        return columns

    def _check_key(self, columns: Columns, tenant_id: str, tenant: Columns) -> None:
        """A key may do no more than its tenant, and has its name to itself. Routers hold it to that once more."""
        if tenant["models"] is not None:
            for model in columns["models"] or []:
                if model not in tenant["models"]:
                    raise BadRequest(f"models: {model} is not allowed to the tenant {tenant_id}", "models")
        if self._rows.is_named(tenant_id, columns["name"], columns.get("key_id", "")):
            raise Conflict(f"the tenant {tenant_id} has a key named {columns['name']}", "name")

    def _update(self, level: Level, object_id: str, changed: Columns) -> None:
        self._rows.change(level, object_id, {**changed, "change": self._number})

    def _tell(self, act: str, level: Level, object_id: str, changes: dict[str, list[Any]]) -> None:
        row = {"at": self._now, "actor": self._actor[:128], "act": act, "level": level, "object_id": object_id}
        self._rows.tell({**row, "changes": changes})
        self.told.append((act, level, object_id))
