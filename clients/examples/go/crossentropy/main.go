// Cross-entropy over HTTP: go run ./crossentropy
package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strconv"
	"strings"
	"time"
)

var client = &http.Client{Timeout: 10 * time.Second}

// Number is a float64 that JSON may give as "NaN", "Infinity" or "-Infinity".
type Number float64

func (n *Number) UnmarshalJSON(text []byte) error {
	value, err := strconv.ParseFloat(strings.Trim(string(text), `"`), 64)
	*n = Number(value)
	return err
}

// Problem is what the service refused (RFC 9457): Code is for programs, Title and Detail are for people.
type Problem struct{ Code, Title, Detail string }

func (p *Problem) Error() string { return p.Title + ": " + p.Detail }

// send posts a request as JSON.
func send(request any) (*http.Response, error) {
	body, err := json.Marshal(request)
	if err != nil {
		return nil, err
	}
	url := os.Getenv("LOSSEVAL_URL")
	if url == "" {
		url = "http://127.0.0.1:8000"
	}
	call, err := http.NewRequest(http.MethodPost, url+"/v1/cross-entropy", bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	call.Header.Set("Content-Type", "application/json")
	call.Header.Set("X-Request-Timeout", fmt.Sprint(client.Timeout.Seconds()))
	return client.Do(call)
}

// CrossEntropy evaluates a request and decodes the answer; a refusal is a *Problem.
func CrossEntropy(request, answer any) error {
	response, err := send(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		return json.NewDecoder(response.Body).Decode(answer)
	}
	problem := &Problem{}
	if json.NewDecoder(response.Body).Decode(problem) != nil {
		return fmt.Errorf("HTTP %s", response.Status)
	}
	return problem
}

func main() {
	request := map[string]any{
		"logits": [][]float32{
			{0.3703, -0.1607, -0.7473, -2.2135},
			{0.6929, -0.2042, -0.7660, -0.3613},
			{-0.3363, 0.6417, 0.3103, 0.3132},
		},
		"labels": []int{0, 1, 2},
	}
	var answer struct{ Loss Number }
	if err := CrossEntropy(request, &answer); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	fmt.Println(answer.Loss)
}
