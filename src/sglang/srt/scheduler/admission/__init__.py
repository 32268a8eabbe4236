"""Admission: requests are checked and queued, and a step takes as many as memory and budget allow."""
