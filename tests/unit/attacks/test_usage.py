"""Nobody sees what another has used, whatever the question; and no question breaks the one who answers."""

from __future__ import annotations

import base64
import json
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx

from serve.admin import build_admin
from serve.ledger.usage import usage
from serve.services import Database
from serve.tenants.development import make_store
from serve.words import Secret
from tests.support.town import Town


async def both_used(town: Town) -> None:
    for key in (town.alice, town.mallory):
        for choices, most in ((1, 4), (1, 7), (99, 4)):
            await town.ask(key, n=choices, max_tokens=most)
    await town.ledger_rows()


def cursor(*values: Any) -> str:
    return base64.urlsafe_b64encode(json.dumps(values).encode()).decode()


async def test_no_question_shows_another_tenants_usage(town: Town) -> None:
    await both_used(town)
    mine = (await town.get("/v1/usage", town.mallory)).json()
    assert sum(n for group in mine["data"] for n in group["requests"].values()) == 3
    assert {group["key_id"] for group in mine["data"]} == {town.key_ids["mallory"]}
    other = town.key_ids["alice"]
    for query in ("tenant=alice", "tenant_id=alice", "organisation=a-org", f"key={other}", f"key_id={other}",
                  "by=tenant", "by=organisation", f"by={other}", "by=key_id", "by=day,tenant_id", "by=*",
                  "tenant=mallory&tenant=alice", "by=key&by=tenant", "by=tenant&by=key", "BY=tenant", "limit=1&limit=1",
                  "since=2026-01-01&since=x", "by=key' OR 1=1 --", "cursor=' OR 1=1 --"):  # fmt: skip
        answer = await town.get(f"/v1/usage?{quote(query, safe='=&,')}", town.mallory)
        assert answer.status_code == 400, query
        assert other not in answer.text.replace(quote(query), "").replace(query, "")


async def test_a_cursor_made_for_one_shows_another_nothing_of_the_first(town: Town) -> None:
    await both_used(town)
    page = (await town.get("/v1/usage?by=model,key&limit=1", town.alice)).json()
    hers = quote(page["next_cursor"])
    seen = (await town.get(f"/v1/usage?by=model,key&cursor={hers}", town.mallory)).json()["data"]
    assert {group["key_id"] for group in seen} <= {town.key_ids["mallory"]}
    forged = cursor("", "")
    seen = (await town.get(f"/v1/usage?by=model,key&cursor={quote(forged)}", town.mallory)).json()["data"]
    assert [group["key_id"] for group in seen] == [town.key_ids["mallory"]] * len(seen) != []


async def test_no_cursor_and_no_time_breaks_the_server(town: Town) -> None:
    await both_used(town)
    deep = base64.urlsafe_b64encode(b"[" * 20_000).decode()
    cursors = [deep, cursor(2**63), cursor(-(2**63) - 1), cursor(10**400), cursor(True), cursor(None), cursor(1.5),
               cursor("x"), cursor(1, 2), cursor(), cursor([1]), "é", "====", "/w=="]  # fmt: skip
    texts = [cursor("\x00"), cursor("\ud800"), cursor("x" * 5000), cursor(1)]
    for by, tried in (("day", cursors), ("key", texts)):
        for each in tried:
            answer = await town.get(f"/v1/usage?by={by}&cursor={quote(each)}", town.mallory)
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "cursor"), each[:50]
    for query in ("since=0001-01-01&until=0001-01-02", "until=0001-01-01", "since=9999-12-31T23:59:59-23:59",
                  "since=9999-12-31&until=9999-12-31T23:59:59-23:59", "until=0001-01-01T00:00:00%2B14:00",
                  "until=9999-12-31", "since=1969-12-01&until=1969-12-02"):  # fmt: skip
        answer = await town.get(f"/v1/usage?{query}", town.mallory)
        assert answer.status_code == 400, query
        assert answer.json()["error"]["type"] == "invalid_request_error"


async def test_administrators_see_everybodys_usage_and_nobody_else_does(town: Town, tmp_path: Path) -> None:
    await both_used(town)
    (tmp_path / "admin").mkdir()
    store, token = make_store(Database(), tmp_path / "admin"), Secret("admin-" + "t" * 64)
    transport = httpx.ASGITransport(build_admin(store, token, partial(usage, town.database), "EUR"))
    async with httpx.AsyncClient(transport=transport, base_url="http://admin/admin/v1") as client:
        for key in (town.alice, town.mallory, ""):
            refused = await client.get("/usage", headers={"Authorization": f"Bearer {key}"})
            assert refused.status_code == 401
        client.headers["Authorization"] = f"Bearer {token.reveal()}"
        page = (await client.get("/usage?by=organisation,tenant,key")).json()
        told = [(g["organisation_id"], g["tenant_id"], g["key_id"], g["requests"]) for g in page["data"]]
        each = {"done": 2, "refused": 1}
        assert (page["currency"], told) == ("EUR", [("a-org", "alice", town.key_ids["alice"], each),
                                                    ("m-org", "mallory", town.key_ids["mallory"], each)])  # fmt: skip
        for query in ("tenant=alice", "organisation=a-org", "tenant=alice&organisation=a-org"):
            (alone,) = (await client.get(f"/usage?{query}&by=tenant")).json()["data"]
            assert (alone["tenant_id"], alone["requests"]) == ("alice", each)
        assert (await client.get("/usage?tenant=alice&organisation=m-org")).json()["data"] == []
        first = (await client.get("/usage?by=tenant&limit=1")).json()
        rest = (await client.get(f"/usage?by=tenant&limit=1&cursor={quote(first['next_cursor'])}")).json()
        assert [g["tenant_id"] for g in first["data"] + rest["data"]] == ["alice", "mallory"]
        for wrong in ("tenant=%00", "tenant=' OR 1=1", "organisation=Acme", "by=tenant_id", "tenant=a&tenant=b", "x=1"):
            assert (await client.get(f"/usage?{wrong}")).status_code == 400, wrong
    store.close()
