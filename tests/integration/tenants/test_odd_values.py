"""What is written can be read back, or is refused before it is written: every field, at every door."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime
from functools import partial
from typing import Any

import httpx
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serve.admin import build_admin
from serve.errors import BadRequest, Conflict, TenantSuspended, Unauthorized
from serve.ledger.usage import usage
from serve.manage import fields
from serve.tenants.directory import Tenants
from serve.tenants.given import Given, KeyGiven, OrganisationGiven, TenantGiven
from serve.tenants.importing import apply, read
from serve.tenants.showing import shown
from serve.tenants.store import Store
from serve.words import Secret
from tests.support import odd_values as odd
from tests.support.properties import FEW, MANY, examples

TOKEN = Secret("admin-" + "t" * 64)
NAMES = ("after", "limit", "before", "object", "organisation", "tenant", "since", "until", "by", "cursor", "x")
QUERIES = st.dictionaries(
    st.sampled_from(NAMES),
    st.one_of(
        st.sampled_from(["1", "1000", "0", "acme", "day", "tenant,model", "W10=", "bnVsbA==", str(2**63 - 1)]),
        odd.times.map(str),
        odd.numbers.map(str),
        st.text(max_size=80),
    ),
    max_size=3,
)


class Town:
    """A store behind the admin API, and a router that follows it."""

    def __init__(self, store: Store, client: httpx.AsyncClient) -> None:
        self.store, self.client, self.router = store, client, Tenants(store.pepper)
        self.numbers = itertools.count()

    def state(self) -> tuple[int, int]:
        """Grows with everything that is written."""
        return self.store.changes_since(self.router.number).number, acts_of(self.store)

    async def said(self, method: str, path: str, body: Any = None) -> Any:
        """What a request made, or None where it was refused, in words, and nothing was written."""
        before = self.state()
        content = None if body is None else json.dumps(body)
        answer = await self.client.request(method, path, content=content)
        told = answer.json()
        if answer.status_code < 300:
            assert self.state() > before
            self.router.refresh(self.store)
            return told
        assert 400 <= answer.status_code < 500, (path, body, answer.text)
        assert self.state() == before
        named = told["error"]["param"]
        assert (named and named.split(".")[0] in body) or "JSON" in told["error"]["message"], told
        return None

    async def shows(self, path: str) -> Any:
        answer = await self.client.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def whole(self) -> None:
        for path in ("/organisations", "/tenants", "/keys", "/audit"):
            after, more = "", True
            while more:
                page = await self.shows(f"{path}?limit=1000{after}")
                more = page["has_more"]
                last = page["data"][-1] if more else {}
                name = {"/audit": "before"}.get(path, "after")
                after = f"&{name}={last.get(next(iter(last), ''), '')}"


def acts_of(store: Store) -> int:
    """Grows with every act."""
    newest = store.audit(most=1)
    return newest[0].audit_id if newest else 0


@pytest.fixture
async def town(store: Store) -> AsyncIterator[Town]:
    app = build_admin(store, TOKEN, partial(usage, store._engine))
    transport = httpx.ASGITransport(app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {TOKEN.reveal()}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://admin/admin/v1", headers=headers) as client:
        made = Town(store, client)
        yield made
        await made.whole()


def kept(moment: str) -> str:
    return datetime.fromisoformat(moment.upper()).astimezone(UTC).isoformat(timespec="seconds")


def is_so(told: Mapping[str, Any], body: Mapping[str, Any]) -> None:
    """What is shown is what was sent."""
    for name, sent in body.items():
        match name:
            case "limits" | "ceilings":
                assert told[name] == {n: v for n, v in sent.items() if v is not None}
            case "models" | "scopes":
                assert told[name] == (None if sent is None else sorted(set(sent)))
            case "expires_at":
                assert told[name] == (None if sent is None else kept(sent))
            case _:
                assert told[name] == sent


async def api(
    town: Town, organisation: dict[str, Any], tenant: dict[str, Any], key: dict[str, Any], grace: Any
) -> None:
    number = next(town.numbers)
    above, name = f"o{number}", f"t{number}"
    made = await town.said("POST", "/organisations", {"id": above, **organisation})
    if made:
        is_so(await town.shows(f"/organisations/{above}"), organisation)
    else:
        organisation = {}
        await town.said("POST", "/organisations", {"id": above})
    made = await town.said("POST", "/tenants", {"id": name, "organisation": above, **tenant})
    if made:
        is_so(await town.shows(f"/tenants/{name}"), tenant)
    else:
        assert await town.said("POST", "/tenants", {"id": name, "organisation": above})
    text = f"i{number}"
    wanted = {"id": text, "tenants": [{"id": text, **(tenant if made else {}), "keys": [key]}], **organisation}
    imports = imported(town.store, {"organisations": [wanted]})
    new = await town.said("POST", f"/tenants/{name}/keys", key)
    assert bool(new) == imports, key
    if not new:
        return
    key_id = new["key"]["key_id"]
    is_so(await town.shows(f"/keys/{key_id}"), key)
    identified(town.router, new["secret"])
    rotated = await town.said("POST", f"/keys/{key_id}/rotate", {"grace_s": grace})
    if rotated:
        identified(town.router, rotated["secret"])
    listed = await town.shows(f"/keys?tenant={name}")
    assert [one["key_id"] for one in listed["data"]] == [key_id]
    (created, *_) = (await town.shows(f"/audit?object={key_id}"))["data"][-1:]
    if created["changes"].get("expires_at"):
        assert created["changes"]["expires_at"] == [None, listed["data"][0]["expires_at"]]


def imported(store: Store, wanted: Any) -> bool:
    """Whether a file with these words is taken. Where it is not, nothing of it is."""
    before = acts_of(store)
    try:
        apply(store, read(yaml.safe_dump(wanted)), "importer")
    except (BadRequest, Conflict):
        assert acts_of(store) == before
        return False
    return True


def identified(router: Tenants, secret: str) -> None:
    try:
        tenant = router.identify(f"Bearer {secret}")
    except (Unauthorized, TenantSuspended):
        return  # expired, suspended
    assert math.isfinite(1e18 / tenant.weight)


ALL = {"organisation": odd.organisations, "tenant": odd.tenants, "key": odd.keys, "grace": st.just(60) | odd.numbers}


@examples(FEW)
@given(**ALL)
async def test_what_the_admin_api_and_a_file_take_can_be_read_back(
    town: Town, organisation: dict[str, Any], tenant: dict[str, Any], key: dict[str, Any], grace: Any
) -> None:
    await api(town, organisation, tenant, key, grace)


@pytest.mark.full
@pytest.mark.timeout(1800)
@examples(MANY)
@given(**ALL)
async def test_odd_values_by_the_thousand(
    town: Town, organisation: dict[str, Any], tenant: dict[str, Any], key: dict[str, Any], grace: Any
) -> None:
    await api(town, organisation, tenant, key, grace)


@examples(FEW)
@given(path=st.sampled_from(["/organisations", "/tenants", "/keys", "/audit", "/usage"]), query=QUERIES)
async def test_a_query_is_answered_or_refused_by_the_name_of_its_field(
    town: Town, path: str, query: dict[str, str]
) -> None:
    answer = await town.client.get(path, params=query)
    assert answer.status_code in (200, 400), answer.text
    if answer.status_code == 400:
        assert answer.json()["error"]["param"] in (*query, "since")  # whose default may lie behind `until`


PAIRS = st.builds("{}={}".format, st.sampled_from(["tokens_per_day", "x"]), odd.numbers | odd.names)
OPTIONS: dict[str, st.SearchStrategy[Any]] = {
    "limits": st.lists(PAIRS, max_size=2) | st.just(["tokens_per_day=" + "9" * 5000]),
    "models": st.sampled_from(["all", "a,b", ",", ""]) | odd.names.map(str),
    "scopes": st.sampled_from(["generate", "usage,generate", ""]) | odd.names.map(str),
    "weight": st.floats(),
    "expires_at": st.just("never") | odd.times.map(str),
    "name": odd.names.map(str),
}


@examples(FEW)
@given(options=st.fixed_dictionaries({}, optional=OPTIONS))
async def test_what_the_command_line_takes_can_be_read_back(town: Town, options: dict[str, Any]) -> None:
    number = next(town.numbers)
    with town.store.acting("tester") as acts:
        acts.create_organisation(f"o{number}", OrganisationGiven())
        acts.create_tenant(f"t{number}", f"o{number}", TenantGiven())
    models: tuple[type[Given], ...] = (OrganisationGiven, TenantGiven, KeyGiven)
    for model in models:
        known = {name: value for name, value in options.items() if name in model.model_fields}
        before = town.state()
        try:
            with town.store.acting("tester") as acts:
                if model is OrganisationGiven:
                    acts.change("organisation", f"o{number}", fields.given(OrganisationGiven, **known))
                elif model is TenantGiven:
                    acts.change("tenant", f"t{number}", fields.given(TenantGiven, **known))
                else:
                    acts.create_key(f"t{number}", fields.given(KeyGiven, **known))
        except BadRequest:
            assert town.state() == before
        town.router.refresh(town.store)
    await town.shows(f"/organisations/o{number}")
    await town.shows(f"/keys?tenant=t{number}")
    told = await town.shows(f"/tenants/t{number}")
    assert 0.001 <= told["weight"] <= 1000


def test_a_time_outside_the_calendar_that_was_stored_before_does_not_close_the_lists(store: Store) -> None:
    with store.acting("tester") as acts:
        acts.create_organisation("acme", OrganisationGiven())
        acts.create_tenant("web", "acme", TenantGiven())
        key = acts.create_key("web", KeyGiven(name="ci")).key
        acts._rows.change("key", key.key_id, {"expires_at": 253_402_318_799.0})
    (row,) = store.page("key")
    assert shown(row)["expires_at"] == "9999-12-31T23:59:59+00:00"


def test_an_audit_shows_a_time_as_a_time(store: Store) -> None:
    with store.acting("tester") as acts:
        acts.create_organisation("acme", OrganisationGiven())
        acts.create_tenant("web", "acme", TenantGiven())
        acts.create_key("web", fields.given(KeyGiven, name="ci", expires_at="2031-01-01T00:00:00Z"))
    (newest,) = store.audit(most=1)
    assert shown(newest)["changes"]["expires_at"] == [None, "2031-01-01T00:00:00+00:00"]
