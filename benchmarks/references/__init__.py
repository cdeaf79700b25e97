"""Procedures as published implementations carry them out, written from their specification, without gambeson."""
