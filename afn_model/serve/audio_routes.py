"""``/v1/audio``: recordings uploaded once and asked about by their id."""

from __future__ import annotations

from fastapi import APIRouter

router = APIRouter()
