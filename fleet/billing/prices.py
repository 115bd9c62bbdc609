"""`configs/prices.yaml`: what an hour of each size costs, from which day on. Read again when it changes.

Money is whole numbers: millionths of the currency. Nothing here is a float.
"""

from datetime import UTC, date, datetime
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import structlog
import yaml
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

log = structlog.get_logger(__name__)

PRICES_FILE = Path(__file__).resolve().parent.parent.parent / "configs" / "prices.yaml"
MILLION = 1_000_000


def micros(value: Any) -> int:
    """A price as written (`0.012`) in millionths; more than six decimals cannot be charged exactly."""
    amount = Decimal(str(value)) * MILLION
    if amount < 0 or amount != amount.to_integral_value():
        raise ValueError(f"{value} is no price: at least 0, with at most six decimals")
    return int(amount)


class Tariff(BaseModel):
    """Prices per hour from a day (UTC) on. `idle`: of pool servers nobody has claimed; `regions`: where others hold."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True)
    since: date = Field(alias="from")
    per_hour: dict[str, int]
    idle_per_hour: dict[str, int] = {}
    regions: dict[str, dict[str, int]] = {}

    @field_validator("per_hour", "idle_per_hour", mode="before")
    @classmethod
    def _micros(cls, value: Any) -> Any:
        return {size: micros(price) for size, price in value.items()}

    @field_validator("regions", mode="before")
    @classmethod
    def _regions(cls, value: Any) -> Any:
        return {region: {size: micros(price) for size, price in sizes.items()} for region, sizes in value.items()}

    @property
    def since_ms(self) -> int:
        return int(datetime(self.since.year, self.since.month, self.since.day, tzinfo=UTC).timestamp()) * 1000

    def price(self, region: str, size: str, kind: str) -> int:
        if kind == "idle" and size in self.idle_per_hour:
            return self.idle_per_hour[size]
        return self.regions.get(region, {}).get(size, self.per_hour.get(size, 0))


class Prices(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")
    currency: str = Field(pattern="^[A-Z]{3}$")
    tariffs: tuple[Tariff, ...]

    @model_validator(mode="after")
    def _ordered(self) -> "Prices":
        days = [tariff.since for tariff in self.tariffs]
        if days != sorted(set(days)):
            raise ValueError("tariffs must be in order, one for each day")
        return self

    def per_hour(self, region: str, size: str, kind: str, at: int) -> int:
        """Millionths for an hour that begins at `at`; 0 before the first tariff, and for sizes without a price."""
        for tariff in reversed(self.tariffs):
            if tariff.since_ms <= at:
                return tariff.price(region, size, kind)
        return 0


def read_prices(path: Path) -> Prices:
    return Prices.model_validate(yaml.safe_load(path.read_text()))


class PriceBook:
    """The prices of a file, as it is now. While it is broken, what it said before holds."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._seen: tuple[int, int] | None = None
        self._prices = Prices(currency="USD", tariffs=())

    def now(self) -> Prices:
        try:
            found = self._path.stat()
            seen = (found.st_mtime_ns, found.st_size)
        except OSError:
            seen = (0, 0)
        if seen != self._seen:
            self._seen = seen
            try:
                self._prices = read_prices(self._path)
            except (OSError, ValueError, AttributeError, ArithmeticError, yaml.YAMLError) as error:
                log.error("prices_unreadable", file=str(self._path), error=str(error))
        return self._prices


@lru_cache(maxsize=4)
def price_book(path: Path | None = None) -> PriceBook:
    return PriceBook(path or PRICES_FILE)
