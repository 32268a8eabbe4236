"""Where drafts come from: the text of the request itself, and earlier outputs of the same grammar."""
