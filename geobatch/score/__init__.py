"""Bulk scoring: every block of a survey read, preprocessed, predicted, trimmed, written and receipted."""
