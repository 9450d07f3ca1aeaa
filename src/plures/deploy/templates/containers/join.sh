mkdir -p $site/post
cp federation.toml keys/ca.crt $site/post
cp $rows $site/data.csv
own $site
in_service $service join post/federation.toml post/ca.crt --client $client --data data.csv --fingerprint "$$agreed"
