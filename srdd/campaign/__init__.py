"""Fault campaigns: many simulated faults and clean controls, scanned one by one and scored neutrally."""

from srdd.campaign.file import Campaign, read_campaign
from srdd.campaign.outcome import Outcome
from srdd.campaign.score import Score, score

__all__ = ["Campaign", "Outcome", "Score", "read_campaign", "score"]
