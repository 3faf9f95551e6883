"""Scores of transcripts and translations, their uncertainty, and the table of systems under evaluation."""
