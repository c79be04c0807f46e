"""The page of a run, report.html: what its folder holds, read into one record and shown in one offline file."""
