"""Why an inversion of one update is likely to succeed or to fail, before any attack runs."""

from fedveil.attacks.diagnosis.api import diagnose, examine
from fedveil.attacks.diagnosis.finding import Diagnosis, Finding, LayerSize, Outlook

__all__ = ["Diagnosis", "Finding", "LayerSize", "Outlook", "diagnose", "examine"]
