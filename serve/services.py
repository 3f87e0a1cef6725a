"""Settings of what the parts of a deployment share: its database, its admin API."""

from __future__ import annotations

import re
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator


class Frozen(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Database(Frozen):
    """Where tenants, keys and usage are kept: SQLite for one machine, PostgreSQL for several."""

    url: SecretStr | None = Field(
        None,
        description="postgresql+psycopg://USER:PASSWORD@HOST/NAME or sqlite:///FILE; else the instance's file.",
    )
    pepper_file: Path | None = Field(
        None, description="The secret under which API keys are hashed, the same on every machine; else the instance's."
    )

    @field_validator("url")
    @classmethod
    def _known_engine(cls, url: SecretStr | None) -> SecretStr | None:
        if url and not re.match(r"sqlite:///.|postgresql\+psycopg://.", url.get_secret_value()):
            raise ValueError("write it as postgresql+psycopg://USER:PASSWORD@HOST/NAME or sqlite:///FILE")
        return url

    def url_in(self, folder: Path) -> str:
        """`folder`: the instance's."""
        return self.url.get_secret_value() if self.url else f"sqlite:///{folder / 'starserve.db'}"

    def pepper_in(self, folder: Path) -> Path:
        return self.pepper_file or folder / "pepper"


class Admin(Frozen):
    """The admin API, `starserve admin`: on a port of its own, with a credential of its own."""

    host: str = Field("127.0.0.1", description="Its address; behind anything else put TLS in front of it.")
    port: int | None = Field(None, ge=1, le=65535, description="Its port; without one there is no admin API.")
    token_file: Path | None = Field(None, description="Its bearer token, 0600; else made in the instance's folder.")
