"""Who somebody is comes from the key alone: not from headers, bodies, hosts, paths or what a key's text looks like."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from serve.admin import build_admin
from serve.rights import may_use
from serve.services import Database
from serve.tenants.development import make_store
from serve.words import Secret
from tests.support.door import FORMS
from tests.support.town import Town, head, raw

FORGED = [
    ("X-Tenant-Id", "alice"), ("X-Tenant", "alice"), ("X-Organisation-Id", "a-org"), ("OpenAI-Organization", "a-org"),
    ("OpenAI-Project", "alice"), ("X-User", "alice"), ("User", "alice"), ("X-Api-Key", "alice"), ("X-Key-Id", "alice"),
    ("X-Priority", "interactive"), ("Priority", "u=0"), ("X-Weight", "1000"), ("X-Band", "interactive"),
    ("X-Cache-Salt", "alice"), ("Cache-Salt", "alice"), ("X-Request-Disconnect-Disabled", "true"),
    ("X-Request-Timeout-Seconds", "999999"), ("Serve_Multiplexed_Model_Id", "alice"), ("X-Forwarded-User", "alice"),
    ("X-Forwarded-For", "127.0.0.1"), ("X-Original-Url", "/admin/v1/tenants"), ("X-Rewrite-Url", "/v1/models"),
    ("X-Http-Method-Override", "DELETE"), ("Cookie", "tenant=alice"), ("X-Remote-User", "alice"),
    ("X-Amzn-Tenant", "alice"), ("Traceparent", "00-" + "a" * 32 + "-" + "b" * 16 + "-01"),
]  # fmt: skip


async def test_no_header_changes_whose_job_it_is_or_how_it_is_served(town: Town) -> None:
    plain = await town.ask(town.mallory)
    body = {"model": "tiny", **FORMS["/v1/completions"], "max_tokens": 4}
    headers = [("Authorization", f"Bearer {town.mallory}"), *FORGED]
    forged = await town.client.post("/v1/completions", json=body, headers=headers)
    assert (plain.status_code, forged.status_code) == (200, 200)
    honest, attacked = town.engine.jobs
    for name in ("share", "sampling", "prompt_ids", "traceparent", "adapter"):
        assert getattr(attacked, name) == getattr(honest, name)
    assert attacked.cache_salt.reveal() == honest.cache_salt.reveal()
    await town.ask(town.alice)
    assert town.engine.jobs[-1].cache_salt.reveal() != honest.cache_salt.reveal()
    assert [(r["tenant_id"], r["key_id"], r["organisation_id"]) for r in await town.ledger_rows()] == [
        ("mallory", town.key_ids["mallory"], "m-org"), ("mallory", town.key_ids["mallory"], "m-org"),
        ("alice", town.key_ids["alice"], "a-org"),
    ]  # fmt: skip


FIELDS = ["priority", "cache_salt", "tenant", "tenant_id", "weight", "band", "key_id", "request_id", "session_id",
          "kv_transfer_params", "vllm_xargs", "lora_request", "api_base", "base_url", "prompt_embeds",
          "extra_body"]  # fmt: skip


async def test_no_field_of_a_body_says_who_somebody_is(town: Town) -> None:
    for path, field in itertools.product(FORMS, FIELDS):
        answer = await town.ask(town.mallory, path, **{field: "alice"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unknown_parameter"), (path, field)
    assert not town.engine.jobs


async def test_a_user_named_in_the_body_is_nobody(town: Town) -> None:
    await town.ask(town.mallory, user="alice", metadata={"tenant": "alice"}, service_tier="priority")
    (job,) = town.engine.jobs
    assert (job.share.tenant_id, job.share.band) == ("mallory", "standard")


KEYS = [
    "' OR 1=1 --", "sk-' OR ''='_" + "x" * 64, "sk-aaaaaaaaaaaa_' UNION SELECT digest FROM api_key_secrets --",
    "sk-%_" + "%" * 64, "sk-aaaaaaaa\x00aaaa_" + "x" * 64, "sk-" + "a" * 12 + "_" + "x" * 64 + "\x00", "\ud800",
    "sk-" + "é" * 12 + "_" + "x" * 64, "sk-" + "１" * 12 + "_" + "x" * 64, "x" * 10_000, "sk-" + "a" * 10_000,
    "sk-" + "a" * 12 + "_" + "x" * 10_000, "", "sk-", "sk-_", "null", "undefined", "[object Object]", "0" * 64,
]  # fmt: skip


async def test_whatever_is_no_key_opens_nothing_and_is_not_told_again(
    town: Town, capfd: pytest.CaptureFixture[str]
) -> None:
    told = ""
    for key in KEYS:
        headers = [(b"authorization", b"Bearer " + key.encode("utf-8", "surrogatepass"))]
        answers = [
            await town.client.get(path, headers=headers) for path in ("/v1/models", "/v1/models/tiny", "/v1/usage")
        ]
        answers.append(
            await town.client.post("/v1/completions", json={"model": "tiny", "prompt": "x"}, headers=headers)
        )
        assert [(a.status_code, a.json()["error"]["code"]) for a in answers] == [(401, "invalid_api_key")] * 4
        told += "".join(answer.text for answer in answers)
    rows = await town.ledger_rows()
    assert {(row["outcome"], row["tenant_id"], row["key_id"], row["cost"]) for row in rows} == {("refused", "", "", 0)}
    told += str(rows) + "".join(capfd.readouterr())
    assert not [key for key in KEYS if len(key) > 15 and key in told]


async def test_two_authorization_headers_open_nothing_in_either_order(town: Town) -> None:
    async with town.listening() as port:
        for first, second in ((town.alice, town.mallory), (town.mallory, town.alice), (town.alice, town.alice)):
            both = [("Authorization", f"Bearer {first}"), ("authorization", f"Bearer {second}")]
            assert (await raw(port, head("/v1/models", both))).status == 400
            joined = [("Authorization", f"Bearer {first}, Bearer {second}")]
            assert (await raw(port, head("/v1/models", joined))).status == 401


TARGETS = [
    "/v1/models", "//v1/models", "///v1/models", "/v1//models", "/v1/./models", "/v1/../v1/models", "/v1/models/",
    "/v1/models/.", "/v1/models/..", "/V1/models", "/v1/models;x", "/v1/models%20", "/v1/models%00", "/v1%2fmodels",
    "/%76%31/models", "/v1/models?key=x", "/v1/models#", "/v1/usage", "/v1/usage/", "/health/../v1/models",
    "/docs/../v1/models", "/docs/assets/../../v1/models", "/docs/assets/%2e%2e/%2e%2e/serve/settings.py",
    "/docs/assets/..%2f..%2f..%2fetc/passwd", "http://evil/v1/models", "http://evil/?/v1/models", "v1/models", "*",
    "/v1/../admin/v1/tenants", "/admin/v1/tenants", "/admin", "/%61dmin/v1/keys", "/v1/%2e%2e/admin/v1/tenants",
    "/v1/models/%2e%2e/usage", "/v1/engines/tiny/completions", "/v1/models/tiny/", "/v1/models\\..\\usage",
]  # fmt: skip
HOSTS = ["test", "evil/?", "evil/#", "evil/v1/models?", "/", "?", "#", "@", "127.0.0.1:1/health", "test/health", "",
         "evil/docs/?", "[::1]/health?"]  # fmt: skip
OPEN = {"/health", "/health/live", "/docs", "/openapi.json", "/"}


async def test_no_host_and_no_spelling_of_a_path_opens_a_route_without_a_key(town: Town) -> None:
    async with town.listening() as port:
        every = [(m, t, "test") for t in TARGETS for m in ("GET", "POST", "HEAD", "OPTIONS", "DELETE")]
        every += [("GET", t, host) for t in TARGETS[:12] for host in HOSTS]
        for method, target, host in every:
            answer = await raw(port, head(target, method=method, host=host))
            told = (method, target, host, answer)
            if answer.headers.get("location") == "docs":  # the path is `/`: to the page of the API, relative
                assert "?" in target, told
            else:
                assert answer.status in (400, 401, 404, 405), told
                assert "location" not in answer.headers, told
            assert "tiny" not in answer.text
    assert not town.engine.jobs


async def test_what_needs_no_key_tells_nothing_of_tenants(town: Town) -> None:
    for path in OPEN:
        answer = await town.get(path, None)
        assert answer.status_code in (200, 307)
        assert not any(word in answer.text for word in ("alice", "mallory", "m-org", *town.key_ids.values()))
        assert "evil" not in (await town.get(path, None, ("Host", "evil"))).headers.get("location", "")


async def test_the_routes_of_the_app_are_those_that_were_thought_of(town: Town) -> None:
    """Whoever adds a route must say here whether it needs a key."""
    with_key = {*FORMS, "/v1/models", "/v1/models/{model_id:path}", "/v1/usage",
                "/v1/engines/{model_id:path}/completions"}  # fmt: skip
    assert {route.path for route in town.app.routes} == with_key | OPEN | {"/docs/assets"}


async def test_a_key_of_a_tenant_opens_nothing_of_the_admin_api(town: Town, tmp_path: Path) -> None:
    (tmp_path / "admin").mkdir()
    store = make_store(Database(), tmp_path / "admin")
    town.app = build_admin(store, Secret("admin-" + "t" * 64))
    try:
        async with town.listening() as port:
            for key in (town.alice, town.mallory, "", "admin-" + "t" * 63):
                for target in ("/admin/v1/tenants", "//admin/v1/tenants", "http://x/admin/v1/tenants", "/v1/models"):
                    for host in HOSTS:
                        sent = head(target, [("Authorization", f"Bearer {key}")], host=host)
                        answer = await raw(port, sent)
                        assert answer.status in (400, 401), (target, host, answer)
            body = json.dumps({"id": "x"}).encode()
            twice = [("Content-Length", str(len(body))), ("Authorization", "Bearer admin-" + "t" * 64)]
            sent = head("/admin/v1/organisations", [*twice, twice[1]], method="POST")
            assert (await raw(port, sent, body)).status == 401
        assert store.page("organisation") == []
    finally:
        store.close()


async def test_what_another_may_use_is_as_unknown_as_what_is_not_there(words_folder: Path, tmp_path: Path) -> None:
    town = Town(words_folder, tmp_path, mallory={"models": frozenset({"hers"})}, mallory_key={"models": None})
    try:
        for model in ("tiny", "nothing"):
            asked = await town.ask(town.mallory, model=model)
            shown = await town.get(f"/v1/models/{model}", town.mallory)
            assert asked.status_code == shown.status_code == 404
        wrong, right = [await town.get(f"/v1/models/{m}", town.mallory) for m in ("nothing", "tiny")]
        assert wrong.json() == right.json()
        assert (await town.get("/v1/models", town.mallory)).json()["data"] == []
        path = "/v1/engines/tiny/completions"
        headers = {"Authorization": f"Bearer {town.mallory}"}
        assert (await town.client.post(path, json={"prompt": "x"}, headers=headers)).status_code == 404
        assert not may_use(town.tenants.identify(f"Bearer {town.mallory}"), "tiny")
        assert not town.engine.jobs
    finally:
        await town.close()
