"""`--notify`: messages about a run to chats and programs, sent by a process separate from the launcher."""
