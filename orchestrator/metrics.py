"""The one table of metric names: configuration, tracking, table, figures and reports all read it."""
