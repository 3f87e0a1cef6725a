"""Commands of those who run a deployment: `starserve tenants` and `starserve admin`."""
