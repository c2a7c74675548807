#!/bin/bash
# Whether the program whose admin listener is on this port of this machine is ready: exit code 0 if /readyz answers 200.
# The image has no curl.
set -euo pipefail
exec 3<>"/dev/tcp/127.0.0.1/$1"
printf 'GET /readyz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' >&3
read -r _ status _ <&3
[[ $status == 200 ]]
