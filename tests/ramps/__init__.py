"""Ramps and guardrails: their laws, and the reconciler with a real store."""
