[ -e $key ] || in_service $service keys --client $client
in_service operator add $client $key.pub --fingerprint "$$(fingerprint $key.pub)"
