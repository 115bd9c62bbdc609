"""What every model of the client has in common."""

from pydantic import BaseModel, ConfigDict


class Model(BaseModel):
    """A part of an answer. Fields that a newer server sends are kept, under their own names."""

    model_config = ConfigDict(extra="allow", frozen=True)
