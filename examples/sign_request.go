// Sign as a caller does, with the standard library only.
//
//	AKM_SECRET=... go run examples/sign_request.go KEY_ID [TIMESTAMP [NONCE]]
//
// Prints 64 hex digits. Without arguments: the third test vector of docs/signing.md.
// Without a timestamp the signature is `static`, which can be replayed.
package main

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
)

// Static signs the key id alone.
func Static(secret, keyID string) string {
	return sign(secret, keyID)
}

// Timestamped signs key id, Unix seconds in decimal, and a nonce, which may be empty.
func Timestamped(secret, keyID, timestamp, nonce string) string {
	return sign(secret, "AKM1\n"+keyID+"\n"+timestamp+"\n"+nonce)
}

func sign(secret, message string) string {
	mac := hmac.New(sha256.New, []byte(secret))
	mac.Write([]byte(message))
	return hex.EncodeToString(mac.Sum(nil))
}

func main() {
	args, secret := os.Args[1:], os.Getenv("AKM_SECRET")
	switch {
	case len(args) == 0:
		fmt.Println(Timestamped("super-secret-key", "client-123", "1767225600", "q1w2e3r4t5y6u7i8o9p0aA"))
	case secret == "" || len(args) > 3:
		fmt.Fprintln(os.Stderr, "usage: AKM_SECRET=... sign_request KEY_ID [TIMESTAMP [NONCE]]")
		os.Exit(1)
	case len(args) == 1:
		fmt.Println(Static(secret, args[0]))
	case len(args) == 2:
		fmt.Println(Timestamped(secret, args[0], args[1], ""))
	default:
		fmt.Println(Timestamped(secret, args[0], args[1], args[2]))
	}
}
