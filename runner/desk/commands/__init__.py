"""`runner NAME ...`: prune, rerun, import-flags, schema. (report has a room of its own.)"""
