"""Scoring: complete studies in, one prediction per scoring model version out."""
