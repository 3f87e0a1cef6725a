"""Commands of those who run a deployment: `starserve tenants`, `starserve ledger` and `starserve admin`."""
