"""Traces and metrics of a run, sent to an OpenTelemetry collector by OTLP over HTTP."""
