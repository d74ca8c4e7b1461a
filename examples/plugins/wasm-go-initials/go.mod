module initials

go 1.24
