"""Organisations, their tenants, and the tenants' keys: kept in the database, held in memory by each router."""
