"""Conversations and indexes to try the demo's parts with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromadb
from chromadb.config import Settings

Write = Callable[[Any], Path]


def sample(**changes: Any) -> dict[str, Any]:
    """A conversation with two sessions in LoCoMo's format."""
    return {
        "sample_id": "small",
        "conversation": {
            "speaker_a": "Ann",
            "speaker_b": "Bo",
            "session_1_date_time": "1:56 pm on 8 May, 2023",
            "session_1": [
                {"speaker": "Ann", "dia_id": "D1:1", "text": "I keep bees."},
                {"speaker": "Bo", "dia_id": "D1:2", "text": "I have never been stung."},
            ],
            "session_2_date_time": "9:05 am on 3 June, 2023",
            "session_2": [{"speaker": "Bo", "dia_id": "D2:1", "text": "Now I have been stung."}],
            "session_3_date_time": "9:05 am on 4 June, 2023",
        },
        "observation": {
            "session_1_observation": {
                "Ann": [["Ann keeps bees.", "D1:1"], ["Ann knows Bo.", ["D1:1", "D1:2"]]],
                "Bo": [["Bo was never stung by a bee.", "D1:2"]],
            },
            "session_2_observation": {"Bo": [["Bo was stung by one of Ann's bees.", "D2:1"]]},
        },
        "qa": [
            {"question": "What does Ann keep?", "answer": "Bees", "evidence": ["D1:1"], "category": 4},
            {"question": "How often was Bo stung?", "answer": 1, "evidence": ["D2:1; D1:2"], "category": 1},
        ],
        **changes,
    }


def ephemeral() -> Any:
    """All clients of this kind share one index in a process; collections keep tests apart."""
    return chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
