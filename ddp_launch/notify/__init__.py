"""`--notify`: messages about a run to chats and programs, sent by a process beside the launcher."""
