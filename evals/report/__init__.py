"""An evaluation shown: one page of HTML and its plots."""
