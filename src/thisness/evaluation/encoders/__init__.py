"""Encoders: what turns pictures, patches and sentences into vectors that metrics compare."""

from .encoder import Encoder, fingerprint
from .opening import known_encoders, open_encoder
from .preprocessing import Preprocessing

__all__ = ["Encoder", "Preprocessing", "fingerprint", "known_encoders", "open_encoder"]
