"""Players' skill as the keeper knows it. It alone writes ratings, so what it has read once stays true."""

from collections.abc import Iterable

from sqlmodel import col

from fleet.lobbies.rows import Rating
from fleet.matchmaking.model import MU, SIGMA
from fleet.projects.scope import owned
from fleet.store.engine import Store
from fleet.store.lobby_tables import PlayerRating

Of = tuple[str, str, str, str]  # project, config, mode, player
MAX_KEPT = 200_000
_AT_ONCE = 500


class RatingBook:
    """`load` before `get`: a player that is not here has no rating."""

    def __init__(self) -> None:
        self._kept: dict[Of, Rating | None] = {}

    def get(self, of: Of) -> Rating:
        project_id, config, mode, player_id = of
        return self._kept.get(of) or Rating(project_id, config, mode, player_id, MU, SIGMA, 0, 0)

    def put(self, rating: Rating) -> None:
        self._kept[rating.project_id, rating.config, rating.mode, rating.player_id] = rating

    async def load(self, store: Store, wanted: Iterable[Of]) -> None:
        """What is not known yet, from the database."""
        missing: dict[tuple[str, str, str], list[str]] = {}
        for of in set(wanted) - self._kept.keys():
            missing.setdefault(of[:3], []).append(of[3])
        if not missing:
            return
        if len(self._kept) > MAX_KEPT:
            self._kept.clear()
        async with store.read() as session:
            for (project_id, config, mode), players in missing.items():
                for first in range(0, len(players), _AT_ONCE):
                    some = players[first : first + _AT_ONCE]
                    query = owned(PlayerRating, project_id).where(
                        col(PlayerRating.config) == config,
                        col(PlayerRating.mode) == mode,
                        col(PlayerRating.player_id).in_(some),
                    )
                    rows = {row.player_id: row for row in (await session.exec(query)).all()}
                    for player in some:
                        of = (project_id, config, mode, player)
                        row = rows.get(player)
                        if of not in self._kept:  # else it was rated while this was read
                            self._kept[of] = (
                                Rating(*of, row.mu, row.sigma, row.games, row.updated_at) if row is not None else None
                            )
