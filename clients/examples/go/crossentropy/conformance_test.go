package main

import (
	"encoding/json"
	"flag"
	"fmt"
	"math"
	"os"
	"testing"
)

// TestConformance runs the vectors: go test ./crossentropy -args ../../conformance.json
func TestConformance(t *testing.T) {
	text, err := os.ReadFile(flag.Arg(0))
	if err != nil {
		t.Fatal(err)
	}
	var file struct {
		Vectors []struct {
			Name      string
			Request   map[string]any
			Status    int
			Response  map[string]any
			Tolerance tolerance
		}
	}
	if err := json.Unmarshal(text, &file); err != nil {
		t.Fatal(err)
	}
	for _, vector := range file.Vectors {
		t.Run(vector.Name, func(t *testing.T) {
			response, err := send(vector.Request)
			if err != nil {
				t.Fatal(err)
			}
			defer response.Body.Close()
			if response.StatusCode != vector.Status {
				t.Fatalf("status %d, not %d", response.StatusCode, vector.Status)
			}
			var answer map[string]any
			if err := json.NewDecoder(response.Body).Decode(&answer); err != nil {
				t.Fatal(err)
			}
			if why := difference(vector.Response, answer, vector.Tolerance, "#"); why != "" {
				t.Error(why)
			}
		})
	}
}

type tolerance struct{ Relative, Absolute float64 }

// difference is the first one by the rules of ../../README.md, or "".
func difference(expected, found any, allowed tolerance, place string) string {
	switch expected := expected.(type) {
	case map[string]any:
		object, ok := found.(map[string]any)
		if !ok {
			return fmt.Sprintf("%s is %v, not an object", place, found)
		}
		for name, value := range expected {
			if why := difference(value, object[name], allowed, place+"/"+name); why != "" {
				return why
			}
		}
		return ""
	case []any:
		list, ok := found.([]any)
		if !ok || len(list) != len(expected) {
			return fmt.Sprintf("%s is %v, not %v", place, found, expected)
		}
		for index, value := range expected {
			if why := difference(value, list[index], allowed, fmt.Sprint(place, "/", index)); why != "" {
				return why
			}
		}
		return ""
	case float64:
		number, ok := found.(float64)
		if ok && math.Abs(number-expected) <= allowed.Absolute+allowed.Relative*math.Abs(expected) {
			return ""
		}
	default: // strings, and nil for what is absent
		if found == expected {
			return ""
		}
	}
	return fmt.Sprintf("%s is %v, not %v", place, found, expected)
}
